"use strict";
// Draws a circuit: rows from the embedding (below) to the unembedding (above), and what is known of a node beside it.

const SVG = "http://www.w3.org/2000/svg";
const STEP = 40, ROW = 62, LEFT = 118, RADIUS = 8;
const circuit = JSON.parse(document.getElementById("data").textContent);
const nameOf = (location, channel) => `${location}:${channel}`;

// ---- small things

function make(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  element.append(...children);
  return element;
}

function draw(tag, attributes = {}, ...children) {
  const element = document.createElementNS(SVG, tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  element.append(...children);
  return element;
}

const real = (x, digits = 3) => (typeof x === "number" ? x.toFixed(digits) : "none");
const count = (x) => (typeof x === "number" ? x.toLocaleString("en") : "none");

// ---- the nodes, in rows

const EMBEDDING = "embedding", UNEMBEDDING = "unembedding";
const nodes = new Map();
for (const node of circuit.nodes) {
  nodes.set(nameOf(node.location, node.channel), { ...node, id: nameOf(node.location, node.channel), edges: [], links: [] });
}

function rowOf(location) {
  if (location === "final_resid") return [1e6, "last residual"];
  const [layer, part, place] = location.split(".");
  const within = { "attn.act_in": 0, "attn.q": 1, "attn.k": 1, "attn.v": 1, "attn.resid_delta": 2,
    "mlp.act_in": 3, "mlp.post_act": 4, "mlp.resid_delta": 5 }[`${part}.${place}`];
  const labels = ["attention reads", "q, k, v", "attention writes", "MLP reads", "neurons", "MLP writes"];
  return [1 + 6 * Number(layer) + within, `${layer}: ${labels[within]}`];
}

function headOf(node) {
  return /\.attn\.[qkv]$/.test(node.location) ? Math.floor(node.channel / circuit.d_head) : null;
}

function label(node) {
  if (node.end) return node.end;
  const head = headOf(node);
  const letter = node.location.slice(-1);
  return head === null ? `${node.channel}` : `${letter}${head}.${node.channel % circuit.d_head}`;
}

function describe(node) {
  if (node.end) return node.end;
  const head = headOf(node);
  return `${node.location} ${node.channel}` + (head === null ? "" : ` (head ${head}, channel ${node.channel % circuit.d_head})`);
}

// ---- edges, and what the residual stream carries from writers to readers of a channel

const edges = circuit.edges.map((edge) => {
  const found = { ...edge, from: nodes.get(nameOf(...edge.source)), to: nodes.get(nameOf(...edge.target)) };
  found.from.edges.push(found);
  found.to.edges.push(found);
  return found;
});
const strongest = Math.max(...edges.map((edge) => Math.abs(edge.weight)), 1e-12);

const embedding = { id: EMBEDDING, end: EMBEDDING, edges: [], links: [] };
const unembedding = { id: UNEMBEDDING, end: UNEMBEDDING, edges: [], links: [] };
const linkTokens = new Map(circuit.about.links.map((link) => [nameOf(link.location, link.channel), link.tokens]));
const links = [];

function connect(from, to) {
  const link = { from, to };
  links.push(link);
  from.links.push(link);
  to.links.push(link);
}

for (const node of nodes.values()) {
  const reads = node.location.endsWith("act_in") || node.location === "final_resid";
  if (!reads) continue;
  for (const writer of nodes.values()) {
    const writes = writer.location.endsWith("resid_delta") && writer.channel === node.channel;
    if (writes && rowOf(writer.location)[0] < rowOf(node.location)[0]) connect(writer, node);
  }
  if (node.location === "final_resid") connect(node, unembedding);
  else if (linkTokens.has(node.id)) connect(embedding, node);
}

// ---- where they stand

const rows = new Map();
for (const node of nodes.values()) {
  const [key, title] = rowOf(node.location);
  if (!rows.has(key)) rows.set(key, { key, title, nodes: [] });
  rows.get(key).nodes.push(node);
}
rows.set(0, { key: 0, title: "", nodes: [embedding] });
rows.set(2e6, { key: 2e6, title: "", nodes: [unembedding] });
const ordered = [...rows.values()].sort((a, b) => a.key - b.key);
const widest = Math.max(...ordered.map((row) => row.nodes.length), 8);
const width = LEFT + widest * STEP + 20, height = ordered.length * ROW + 10;

function place(row) {
  const gap = (width - LEFT - 20) / row.nodes.length;
  row.nodes.forEach((node, i) => { node.x = LEFT + (i + 0.5) * gap; });
}

function neighbours(node) {
  return [...node.edges, ...node.links].map((edge) => (edge.from === node ? edge.to : edge.from));
}

function settle() {  // each row in the order of its neighbours' middle, a few times up and down
  ordered.forEach((row, i) => { row.nodes.forEach((node) => { node.y = height - (i + 0.5) * ROW; }); place(row); });
  for (let sweep = 0; sweep < 6; sweep++) {
    for (const row of sweep % 2 ? [...ordered].reverse() : ordered) {
      for (const node of row.nodes) {
        const near = neighbours(node);
        node.middle = near.length ? near.reduce((sum, other) => sum + other.x, 0) / near.length : node.x;
      }
      row.nodes.sort((a, b) => (headOf(a) ?? 0) - (headOf(b) ?? 0) || a.middle - b.middle || (a.id < b.id ? -1 : 1));
      place(row);
    }
  }
}

// ---- the picture

const canvas = document.getElementById("canvas");
const threshold = document.getElementById("threshold");
const showLinks = document.getElementById("links");
const details = document.getElementById("details");
const greatest = Math.max(...circuit.nodes.map((node) => Math.abs(node.effect)), 1e-12);

function curve({ from, to }) {
  const middle = (from.y + to.y) / 2;
  return `M${from.x} ${from.y}C${from.x} ${middle} ${to.x} ${middle} ${to.x} ${to.y}`;
}

function drawGraph() {
  const svg = draw("svg", { viewBox: `0 0 ${width} ${height}`, width, height, role: "group", "aria-label": "circuit" });
  for (const row of ordered) {
    svg.append(draw("text", { class: "place", x: 2, y: row.nodes[0].y + 4 }, row.title));
  }
  for (const link of links) {
    link.element = draw("path", { class: "link", d: curve(link) });
    svg.append(link.element);
  }
  for (const edge of edges) {
    const sign = edge.weight < 0 ? "negative" : "positive";
    const thickness = 0.8 + 4.2 * Math.abs(edge.weight) / strongest;
    const title = `${describe(edge.from)} → ${describe(edge.to)}: ${real(edge.weight)}`;
    edge.element = draw("path", { class: `edge ${sign}`, d: curve(edge), "stroke-width": thickness }, draw("title", {}, title));
    edge.element.addEventListener("click", () => chooseEdge(edge));
    svg.append(edge.element);
  }
  for (const node of ordered.flatMap((row) => row.nodes)) svg.append(drawNode(node));
  canvas.append(svg);
}

function drawNode(node) {
  const shape = node.end
    ? draw("rect", { x: node.x - 44, y: node.y - 10, width: 88, height: 20, rx: 4, "fill-opacity": 0.15 })
    : draw("circle", { cx: node.x, cy: node.y, r: RADIUS, "fill-opacity": 0.12 + 0.88 * Math.min(1, Math.abs(node.effect) / greatest) });
  const text = draw("text", { x: node.x, y: node.end ? node.y + 4 : node.y - RADIUS - 4 }, label(node));
  const about = node.end ? node.end : `${describe(node)}, effect ${real(node.effect)} nats`;
  node.element = draw("g", { class: node.end ? "node end" : "node", tabindex: 0, role: "button", "aria-label": about },
    draw("title", {}, about), shape, text);
  node.element.addEventListener("click", () => choose(node));
  node.element.addEventListener("keydown", (event) => { if (event.key === "Enter" || event.key === " ") { event.preventDefault(); choose(node); } });
  node.element.addEventListener("mouseenter", () => emphasise(node));
  node.element.addEventListener("mouseleave", () => emphasise(null));
  return node.element;
}

function emphasise(node) {
  const near = node && new Set([node, ...neighbours(node)]);
  for (const edge of [...edges, ...links]) edge.element.classList.toggle("dim", Boolean(node) && edge.from !== node && edge.to !== node);
  for (const other of [...nodes.values(), embedding, unembedding]) other.element.classList.toggle("dim", Boolean(node) && !near.has(other));
}

function hide() {
  const least = Number(threshold.value) * strongest;
  let shown = 0;
  for (const edge of edges) {
    const visible = Math.abs(edge.weight) >= least;
    edge.element.setAttribute("visibility", visible ? "visible" : "hidden");
    shown += visible;
  }
  for (const link of links) link.element.setAttribute("visibility", showLinks.checked ? "visible" : "hidden");
  document.getElementById("shown").value = `${real(least, 2)}: ${shown} of ${edges.length} edges`;
}

// ---- beside it

function heat(tokens, activations, peak = -1) {
  const most = Math.max(...activations.map(Math.abs), 1e-12);
  const line = make("div", { class: "text" });
  tokens.forEach((token, i) => {
    const x = activations[i] ?? 0;
    const share = Math.round(70 * Math.abs(x) / most);
    const span = make("span", { title: `${token}: ${real(x)}` });
    span.style.backgroundColor = `color-mix(in srgb, var(--${x < 0 ? "negative" : "positive"}) ${share}%, transparent)`;
    if (i === peak) span.classList.add("peak");
    for (const part of token.split(/(\n)/)) span.append(part === "\n" ? make("i", { class: "return" }, "↵\n") : part);
    line.append(span);
  });
  return line;
}

function table(headings, lines) {
  const body = make("table", {}, make("tr", {}, ...headings.map((text) => make("th", {}, text))));
  for (const line of lines) {
    body.append(make("tr", {}, ...line.map((cell) => make("td", typeof cell === "string" ? { class: "number" } : {}, cell))));
  }
  return body;
}

function goTo(node) {
  const button = make("button", { type: "button" }, describe(node));
  button.addEventListener("click", () => choose(node));
  return button;
}

function mark(...elements) {
  for (const old of canvas.querySelectorAll(".chosen")) old.classList.remove("chosen");
  for (const element of elements) element.classList.add("chosen");
}

function choose(node) {
  mark(node.element);
  details.replaceChildren(make("h2", {}, describe(node)));
  if (node.end) return showEnd(node);
  details.append(table(["effect when cut", "mean"], [[real(node.effect), real(node.mean)]]));
  const incoming = node.edges.filter((edge) => edge.to === node), outgoing = node.edges.filter((edge) => edge.from === node);
  const byWeight = (a, b) => Math.abs(b.weight) - Math.abs(a.weight);
  if (incoming.length) details.append(make("h2", {}, "Reads"), table(["from", "weight"], incoming.sort(byWeight).map((e) => [goTo(e.from), real(e.weight)])));
  if (outgoing.length) details.append(make("h2", {}, "Writes"), table(["to", "weight"], outgoing.sort(byWeight).map((e) => [goTo(e.to), real(e.weight)])));
  const along = node.links.map((link) => (link.from === node ? link.to : link.from));
  if (along.length) details.append(make("h2", {}, "Along the residual channel"), table([], along.map((other) => [goTo(other)])));
  if (linkTokens.has(node.id)) {
    const from = node.location === "final_resid" ? "The unembedding reads it for" : "The embedding writes it for";
    details.append(make("h2", {}, from), table(["token", "weight"], linkTokens.get(node.id).map(([token, weight]) => [make("code", {}, JSON.stringify(token)), real(weight)])));
  }
  details.append(make("h2", {}, "On the task"));
  node.activations.forEach((activations, i) => details.append(heat(circuit.about.prompts[i].tokens, activations)));
  if (node.contexts.length) details.append(make("h2", {}, "Most active in the corpus (whole model)"));
  for (const context of node.contexts) details.append(heat(context.tokens, context.activations, context.peak));
}

function showEnd(node) {
  const along = node.links.map((link) => (link.from === node ? link.to : link.from));
  details.append(make("p", {}, node === embedding ? "Writes these residual channels, which the circuit reads." : "Reads these residual channels."));
  details.append(table(["channel", "strongest tokens"], along.map((other) =>
    [goTo(other), (linkTokens.get(other.id) ?? []).map(([token, weight]) => `${JSON.stringify(token)} ${real(weight, 2)}`).join("  ")])));
}

function chooseEdge(edge) {
  mark(edge.element);
  details.replaceChildren(make("h2", {}, `Weight ${real(edge.weight, 4)} of ${edge.matrix}`),
    table(["row", "column"], [[count(edge.row), count(edge.column)]]), make("h2", {}, "From"), goTo(edge.from), make("h2", {}, "To"), goTo(edge.to));
}

function showTask() {
  details.replaceChildren(make("h2", {}, "Examples"), make("p", {}, "Choose a node or an edge to see what it does."));
  for (const prompt of circuit.about.prompts) {
    const line = heat(prompt.tokens, []);
    line.append(make("span", { class: "answer" }, prompt.answer));
    details.append(line, make("p", {}, `not ${JSON.stringify(prompt.other)}; margin ${real(prompt.margin, 2)} nats`));
  }
}

// ---- above it

const TITLES = {
  circuit_loss: "loss of the circuit", circuit_accuracy: "accuracy", model_loss: "loss of the model", model_accuracy: "accuracy",
  without_circuit_loss: "loss of the model without it", zero_loss: "with zeros for means", shuffled_loss: "shuffled labels",
  untrained_loss: "untrained model", attribution_nodes: "nodes by attribution",
  divergence: "divergence elsewhere", agreement: "agreement elsewhere",
};

function showNumbers() {
  document.getElementById("task").textContent = circuit.about.task || "circuit";
  document.getElementById("cue").textContent = `${circuit.about.between} — the cue: ${circuit.about.cue}`;
  const numbers = [["nodes", count(circuit.nodes.length)], ["edges", count(circuit.edges.length)],
    ...Object.entries(circuit.about.checks).map(([name, value]) =>
      [TITLES[name] ?? name, name.endsWith("nodes") ? count(value) : real(value)])];
  document.getElementById("numbers").append(...numbers.map(([title, value]) =>
    make("div", {}, make("dt", {}, title), make("dd", {}, value))));
}

settle();
drawGraph();
showNumbers();
showTask();
hide();
threshold.addEventListener("input", hide);
showLinks.addEventListener("change", hide);
