// The floor of a selection: reserves the `floor` largest entries of every row or column, by finding the last of them.
#pragma once
#include "select.h"

namespace sk {
namespace cuda {

// Sets the floors of all matrices that have one and takes their reserved entries out of the histograms.
Status reserve_floors(const Selection& s);

// Bytes of SelectMatrix::scratch that this needs.
int64_t floor_scratch(const SelectMatrix& m, DType dtype);

}  // namespace cuda
}  // namespace sk
