const ROOTS = [0, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 3, 4, 5, 6, 8, 10, 15, 20, 30, 40, 60, 80, 100, 150, 200, 300, 400, 600, 800, 1000];
const root = (x) => Math.sign(x) * Math.sqrt(Math.abs(x));

function nice(low, high, count) {
  const rough = (high - low) / Math.max(count, 1);
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 2.5, 5, 10].map((one) => one * power).find((one) => one >= rough * 0.999);
  const ticks = [];
  for (let i = Math.ceil(low / step - 1e-9); i * step <= high + step * 1e-9; i += 1) ticks.push(Number((i * step).toPrecision(12)));
  return ticks;
}

// A scale from values to pixels: linear, or by the square root.
function scale(low, high, from, to, roots, room) {
  const by = roots ? root : (x) => x;
  const first = by(low);
  const span = by(high) - first || 1;
  const place = (x) => from + ((by(x) - first) / span) * (to - from);
  const count = Math.max(2, Math.floor(Math.abs(to - from) / room));
  if (!roots) return { place, ticks: nice(low, high, count) };
  const ticks = [];
  for (const x of ROOTS) {
    if (x > high || x < low) continue;
    if (!ticks.length || Math.abs(place(x) - place(ticks.at(-1))) >= room * 0.8) ticks.push(x);
  }
  return { place, ticks: ticks.length < 3 ? nice(low, high, count) : ticks };
}

// The ends of an axis: all that is given, with a margin.
function ends(values, zero, margin) {
  const known = values.filter((value) => value !== undefined && value !== null);
  let low = Math.min(...known);
  let high = Math.max(...known);
  if (zero) low = Math.min(low, 0);
  if (high - low < 1e-12) [low, high] = [low - Math.max(1e-3, Math.abs(low) * 0.1), high + Math.max(1e-3, Math.abs(high) * 0.1)];
  const extra = (high - low) * margin;
  return [zero && low === 0 ? 0 : low - extra, high + extra];
}

function markPath(mark, x, y, r) {
  const at = (dx, dy) => `${(x + dx * r).toFixed(1)} ${(y + dy * r).toFixed(1)}`;
  switch (mark) {
    case "square": return `M${at(-0.9, -0.9)}L${at(0.9, -0.9)}L${at(0.9, 0.9)}L${at(-0.9, 0.9)}Z`;
    case "triangle": return `M${at(0, -1.2)}L${at(1.1, 0.8)}L${at(-1.1, 0.8)}Z`;
    case "diamond": return `M${at(0, -1.3)}L${at(1.3, 0)}L${at(0, 1.3)}L${at(-1.3, 0)}Z`;
    case "cross": return `M${at(-1, -1)}L${at(1, 1)}M${at(-1, 1)}L${at(1, -1)}`;
    default: return `M${at(-1, 0)}A${r} ${r} 0 1 1 ${at(1, 0)}A${r} ${r} 0 1 1 ${at(-1, 0)}Z`;
  }
}

// What labels had better not cover: marks, and less so the strokes between them.
function obstacles(places) {
  return places.flatMap((place, index) => {
    const found = place.line.mark ? [{ x: place.x, y: place.y, cost: 1 }] : [];
    const next = places[index + 1];
    if (!next || next.line !== place.line || place.line.style === "dots") return found;
    const count = Math.ceil(Math.hypot(next.x - place.x, next.y - place.y) / 10);
    for (let i = 1; i < count; i += 1) found.push({ x: place.x + ((next.x - place.x) * i) / count, y: place.y + ((next.y - place.y) * i) / count, cost: 0.2 });
    return found;
  });
}

// Writes labels where they touch neither each other nor the edge, and rather no point; what finds no place is left out.
function writeLabels(layer, labels, points, width, bottom) {
  const taken = [];
  const hit = (a, b) => a[0] < b[2] && b[0] < a[2] && a[1] < b[3] && b[1] < a[3];
  for (const { text, x, y, colour } of labels) {
    const node = svg("text", { class: `label ${colour}` }, text);
    layer.append(node);
    const wide = node.getComputedTextLength();
    let best = null;
    for (const [dx, dy] of [[9, 4], [9, -8], [9, 16], [-9 - wide, 4], [-wide / 2, -10], [-wide / 2, 20], [-9 - wide, -8], [-9 - wide, 16]]) {
      const box = [x + dx - 2, y + dy - 11, x + dx + wide + 2, y + dy + 4];
      if (box[0] < 0 || box[2] > width || box[1] < 0 || box[3] > bottom || taken.some((other) => hit(box, other))) continue;
      const cost = points.reduce((sum, point) => sum + (hit(box, [point.x - 4, point.y - 4, point.x + 4, point.y + 4]) ? point.cost : 0), 0);
      if (best === null || cost < best.cost) best = { cost, dx, dy, box };
    }
    if (best === null) {
      node.remove();
    } else {
      fill(node, { x: (x + best.dx).toFixed(1), y: (y + best.dy).toFixed(1) }, []);
      taken.push(best.box);
    }
  }
}
