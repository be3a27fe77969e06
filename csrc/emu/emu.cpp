// The part of the emulator that is compiled once: the context switch.
#define EMU_IMPL
#include "emu.h"
