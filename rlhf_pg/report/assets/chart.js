class Chart {
  constructor(figure, spec) {
    this.spec = spec;
    this.view = 0;
    this.roots = Boolean(spec.roots);
    this.hidden = new Set();
    this.at = null;
    this.box = figure.querySelector(".plot");
    this.controls = figure.querySelector(".controls");
    this.tip = html("div", { class: "tip", hidden: "", role: "status" });
    this.svg = svg("svg", {
      tabindex: 0, role: "group", "aria-roledescription": "figure",
      "aria-label": `${spec.title}. Arrow keys go from point to point, Enter picks one.`,
    });
    this.box.append(this.svg, this.tip);
    this.addControls();
    this.svg.addEventListener("pointermove", (event) => this.nearest(event));
    this.svg.addEventListener("pointerdown", (event) => this.nearest(event));
    this.svg.addEventListener("pointerleave", (event) => event.pointerType === "mouse" && this.show(null));
    this.svg.addEventListener("click", () => this.pickShown());
    this.svg.addEventListener("keydown", (event) => this.key(event));
    this.svg.addEventListener("blur", () => this.show(null));
    document.addEventListener("axis", (event) => {
      if (!spec.roots) return;
      this.roots = event.detail;
      this.addControls();
      this.draw();
    });
    new ResizeObserver(() => this.box.clientWidth !== this.width && this.draw()).observe(this.box);
  }

  addControls() {
    const { views, roots } = this.spec;
    this.controls.replaceChildren();
    if (views.length > 1) {
      this.controls.append(choice("show", views.map((view) => view.label), this.view, (index) => {
        this.view = index;
        this.addControls();
        this.draw();
        this.controls.querySelector("select").focus();
      }));
    }
    // The small figures follow the large ones' choice.
    if (roots && !this.spec.small) {
      this.controls.append(choice("KL axis", ["√KL", "KL"], this.roots ? 0 : 1, (index) => document.dispatchEvent(new CustomEvent("axis", { detail: index === 0 }))));
    }
    const groups = new Map();
    for (const line of views[this.view].lines) {
      const name = line.group || line.name;
      if (!groups.has(name) || groups.get(name).style === "area") groups.set(name, line);
    }
    if (groups.size < 2) return;
    for (const [name, line] of groups) {
      this.controls.append(toggle(name, !this.hidden.has(name), (on) => {
        if (on) this.hidden.delete(name); else this.hidden.add(name);
        this.draw();
      }, swatch(line)));
    }
  }

  draw() {
    this.show(null);
    this.width = this.box.clientWidth;
    if (!this.width) return;
    const { spec, width } = this;
    const view = spec.views[this.view];
    const height = Math.round(Math.min(Math.max(width * (spec.small ? 0.6 : 0.56), spec.small ? 200 : 280), spec.small ? 250 : 460));
    this.svg.setAttribute("viewBox", `0 0 ${width} ${height}`);
    this.svg.replaceChildren();
    const lines = view.lines.filter((line) => !this.hidden.has(line.group || line.name));
    const dots = lines.flatMap((line) => line.dots);
    if (!dots.length) {
      this.svg.append(svg("text", { class: "label muted", x: width / 2, y: height / 2, "text-anchor": "middle" }, "everything is switched off"));
      this.places = [];
      return;
    }
    const marks = view.marks || [];
    const [yLow, yHigh] = ends(dots.flatMap((dot) => [dot.y, dot.low, dot.high]), view.zero, 0.06);
    const [xLow, xHigh] = ends([...dots.flatMap((dot) => [dot.x, dot.x_low, dot.x_high]), ...marks.flatMap((mark) => [mark.x])], false, 0);
    const bottom = height - 40;
    const left = 14 + 7 * Math.max(...nice(yLow, yHigh, (bottom - 14) / 36).map((value) => String(value).length));
    // Room on the right for the labels of the last points.
    const right = width - (width > 560 && dots.some((dot) => dot.label) ? 70 : 14);
    const x = scale(spec.roots ? Math.min(0, xLow) : xLow, xHigh, left + 8, right - 8, this.roots, 56);
    const y = scale(yLow, yHigh, bottom, 14, false, 36);
    this.axes(x, y, left, right, bottom, view.label);
    for (const mark of marks) this.mark(mark, x, left, right, bottom);
    this.places = lines.flatMap((line) => this.line(line, x, y));
    const labels = svg("g");
    this.svg.append(labels);
    const named = this.places.filter((place) => place.dot.label);
    writeLabels(labels, [
      ...marks.map((mark) => ({ text: mark.label, x: x.place(mark.x), y: 20, colour: "ink" })),
      ...named.map((place) => ({ text: place.dot.label, x: place.x, y: place.y, colour: place.line.colour })),
    ], obstacles(this.places), width, bottom);
    this.halo = svg("circle", { class: "halo", r: 9, visibility: "hidden" });
    this.svg.append(this.halo);
  }

  axes(x, y, left, right, bottom, label) {
    const grid = svg("g", { class: "axes", "aria-hidden": "true" });
    for (const tick of y.ticks) {
      grid.append(svg("line", { x1: left, x2: right, y1: y.place(tick), y2: y.place(tick) }));
      grid.append(svg("text", { x: left - 7, y: y.place(tick) + 4, "text-anchor": "end" }, String(tick)));
    }
    for (const tick of x.ticks) {
      grid.append(svg("line", { class: "tick", x1: x.place(tick), x2: x.place(tick), y1: bottom, y2: bottom + 4 }));
      grid.append(svg("text", { x: x.place(tick), y: bottom + 17, "text-anchor": "middle" }, String(tick)));
    }
    grid.append(svg("line", { class: "tick", x1: left, x2: right, y1: bottom, y2: bottom }));
    grid.append(svg("text", { class: "name", x: right, y: bottom + 34, "text-anchor": "end" },
      this.spec.x_label + (this.roots ? " (square-root axis)" : "")));
    if (this.spec.views.length > 1) grid.append(svg("text", { class: "name", x: left, y: 9 }, label));
    this.svg.append(grid);
  }

  mark(mark, x, left, right, bottom) {
    if (mark.low !== undefined && mark.high !== undefined) {
      const from = Math.max(x.place(mark.low), left);
      const to = Math.min(x.place(mark.high), right);
      this.svg.append(svg("rect", { class: "mark", x: from, y: 12, width: Math.max(to - from, 1), height: bottom - 12 }));
    }
    this.svg.append(svg("line", { class: "mark", x1: x.place(mark.x), x2: x.place(mark.x), y1: 12, y2: bottom }));
  }

  line(line, x, y) {
    const group = svg("g", { class: `series ${line.colour} as-${line.style || "line"}${line.mark ? " marked" : ""}` });
    this.svg.append(group);
    const at = (value, dot) => `${x.place(dot.x).toFixed(1)} ${y.place(value).toFixed(1)}`;
    if (line.style === "area") {
      const whole = line.dots.filter((dot) => dot.low !== undefined && dot.high !== undefined);
      const edge = [...whole.map((dot) => at(dot.high, dot)), ...whole.toReversed().map((dot) => at(dot.low, dot))];
      if (edge.length) group.append(svg("path", { class: line.group ? "area" : "area stacked", d: `M${edge.join("L")}Z` }));
      // A band around a line is not pointed at, the parts of a stack are.
      return line.group ? [] : whole.map((dot) => ({ line, dot, x: x.place(dot.x), y: y.place((dot.low + dot.high) / 2) }));
    }
    const shown = line.dots.filter((dot) => dot.y !== undefined);
    if (line.style !== "dots") group.append(svg("path", { class: "stroke", d: `M${shown.map((dot) => at(dot.y, dot)).join("L")}` }));
    for (const dot of shown) {
      const [cx, cy] = [x.place(dot.x), y.place(dot.y)];
      if (!dot.small && dot.low !== undefined) group.append(svg("line", { class: "bar", x1: cx, x2: cx, y1: y.place(dot.low), y2: y.place(dot.high) }));
      if (!dot.small && dot.x_low !== undefined) group.append(svg("line", { class: "bar", x1: x.place(dot.x_low), x2: x.place(dot.x_high), y1: cy, y2: cy }));
      if (line.mark || shown.length === 1) group.append(svg("path", { class: `dot ${line.mark || "circle"}`, d: markPath(line.mark, cx, cy, dot.small ? 2.2 : 4.2) }));
    }
    return shown.map((dot) => ({ line, dot, x: x.place(dot.x), y: y.place(dot.y) }));
  }

  nearest(event) {
    const box = this.svg.getBoundingClientRect();
    const [px, py] = [((event.clientX - box.left) * this.width) / box.width, ((event.clientY - box.top) * this.width) / box.width];
    let best = null;
    this.places.forEach((place, index) => {
      // What can be picked wins over a curve behind it.
      const far = Math.hypot(place.x - px, place.y - py) - (place.dot.tip === undefined ? 0 : 6);
      if (far < 48 && (best === null || far < best.far)) best = { far, index };
    });
    this.show(best === null ? null : best.index);
  }

  key(event) {
    const count = this.places.length;
    const step = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1 }[event.key];
    if (step && count) this.show(this.at === null ? (step > 0 ? 0 : count - 1) : (this.at + step + count) % count);
    else if (event.key === "Enter" || event.key === " ") this.pickShown();
    else if (event.key === "Escape") this.show(null);
    else return;
    event.preventDefault();
  }

  pickShown() {
    const tip = this.at === null ? undefined : this.places[this.at].dot.tip;
    if (tip !== undefined) pick(tip);
  }

  show(index) {
    this.at = index;
    this.tip.hidden = index === null;
    if (this.halo) this.halo.setAttribute("visibility", index === null ? "hidden" : "visible");
    if (index === null) return;
    const place = this.places[index];
    fill(this.halo, { cx: place.x, cy: place.y, class: `halo ${place.line.colour}` }, []);
    this.tip.replaceChildren(...tipOf(place, this.spec));
    const ratio = this.svg.getBoundingClientRect().width / this.width;
    const wide = this.tip.offsetWidth;
    const right = place.x * ratio + 14;
    const leftmost = right + wide > this.box.clientWidth ? place.x * ratio - wide - 14 : right;
    this.tip.style.left = `${Math.max(0, Math.min(leftmost, this.box.clientWidth - wide))}px`;
    this.tip.style.top = `${Math.max(0, place.y * ratio - this.tip.offsetHeight - 10)}px`;
  }
}

function tipOf({ line, dot }, spec) {
  const tip = dot.tip === undefined ? null : DATA.tips[dot.tip];
  if (tip) {
    const rows = tip.rows.slice(0, 8);
    const rest = (tip.config || []).filter(([name]) => !tip.rows.some(([known]) => known === name));
    const kept = rest.length > 5 ? rest.slice(0, 4) : rest;
    const more = [rest.length > kept.length ? `${rest.length - kept.length} more settings` : "", tip.command ? "the command" : "", DATA.samples.length ? "samples" : ""].filter((one) => one);
    return [html("strong", {}, tip.title), pairs([...rows, ...kept]), more.length ? html("p", {}, `Pick the point for ${more.join(", ")}.`) : ""];
  }
  const value = dot.y === undefined ? number(dot.high - dot.low) : number(dot.y);
  const span = dot.y !== undefined && dot.low !== undefined ? ` [${number(dot.low)}, ${number(dot.high)}]` : "";
  return [html("strong", {}, dot.label && dot.label !== line.name ? `${line.name}, ${dot.label}` : line.name), pairs([[spec.x_label, number(dot.x)], ["value", value + span]])];
}

function swatch(line) {
  const area = line.style === "area";
  const picture = svg("svg", { class: `swatch series ${line.colour} as-${line.style || "line"}`, viewBox: "0 0 22 12", "aria-hidden": "true" });
  if (area) picture.append(svg("rect", { class: line.group ? "area" : "area stacked", x: 1, y: 1, width: 20, height: 10 }));
  else if (line.style !== "dots") picture.append(svg("line", { class: "stroke", x1: 0, x2: 22, y1: 6, y2: 6 }));
  if (line.mark) picture.append(svg("path", { class: `dot ${line.mark}`, d: markPath(line.mark, 11, 6, 4) }));
  return picture;
}
