// Samples beside the reference's on the same prompt, each token shaded by what it adds to the KL, or by its advantage.
const SHADES = { kl: "KL, nats", advantage: "advantage" };

class Samples {
  constructor(controls, box) {
    this.sets = DATA.samples;
    this.controls = controls;
    this.box = box;
    this.names = [...new Set(this.sets.map((set) => set.name))];
    this.name = this.names[0];
    this.set = this.of(this.name).at(-1);
    this.index = 0;
    this.shades = Object.keys(SHADES).filter((name) => DATA.levels[name].length);
    this.shade = this.has("kl") ? "kl" : this.shades[0];
    this.draw();
    box.addEventListener("pointerover", (event) => this.read(event.target));
    box.addEventListener("focusin", (event) => this.read(event.target));
    box.addEventListener("keydown", (event) => {
      const step = { ArrowRight: "nextElementSibling", ArrowLeft: "previousElementSibling" }[event.key];
      if (!step || !event.target.matches(".token")) return;
      event.target[step]?.focus();
      event.preventDefault();
    });
  }

  of(name) {
    return this.sets.filter((set) => set.name === name);
  }

  // Whether any token of the chosen set has the number.
  has(shade) {
    const column = shade === "kl" ? 1 : 2;
    return this.set.samples.some((one) => [one.policy, one.reference].some((side) => side && side.tokens.some((token) => token[column] !== null)));
  }

  choose(name, step) {
    const sets = this.of(name);
    if (!sets.length) return;
    this.name = name;
    this.set = sets.find((set) => set.step === step) || sets.at(-1);
    this.index = Math.min(this.index, this.set.samples.length - 1);
    this.draw();
  }

  draw() {
    const sets = this.of(this.name);
    const steps = sets.map((set) => set.step);
    if (!this.has(this.shade)) this.shade = this.shades.find((shade) => this.has(shade)) || this.shade;
    this.controls.replaceChildren();
    if (this.names.length > 1) this.controls.append(choice("of", this.names, this.names.indexOf(this.name), (index) => this.choose(this.names[index], this.set.step)));
    if (sets.length > 1) this.controls.append(this.slider("step", steps, sets.indexOf(this.set), (index) => { this.set = sets[index]; this.index = Math.min(this.index, this.set.samples.length - 1); }));
    else if (steps[0] !== null) this.controls.append(html("span", {}, `step ${steps[0]}`));
    const numbers = this.set.samples.map((_, index) => `${index + 1} of ${this.set.samples.length}`);
    if (numbers.length > 1) this.controls.append(this.slider("sample", numbers, this.index, (index) => { this.index = index; }));
    const shades = this.shades.filter((shade) => this.has(shade));
    if (shades.length > 1) this.controls.append(choice("shade by", shades.map((name) => SHADES[name]), shades.indexOf(this.shade), (index) => { this.shade = shades[index]; this.fill(); }));
    this.fill();
  }

  slider(label, texts, index, changed) {
    const input = html("input", { type: "range", min: 0, max: texts.length - 1, step: 1, value: index, "aria-valuetext": String(texts[index]) });
    const shown = html("output", {}, String(texts[index]));
    input.addEventListener("input", () => {
      changed(Number(input.value));
      shown.textContent = String(texts[Number(input.value)]);
      input.setAttribute("aria-valuetext", shown.textContent);
      if (label === "step") this.draw();
      else this.fill();
      const again = this.controls.querySelector(`input[name="${label}"]`);
      if (again && again !== input) again.focus();
    });
    input.name = label;
    return html("label", { class: "slider" }, html("span", {}, label), input, shown);
  }

  fill() {
    const sample = this.set.samples[this.index];
    if (!sample) {
      this.box.replaceChildren(html("p", { class: "absent" }, "This set holds no samples."));
      return;
    }
    this.reading = html("p", { class: "reading", "aria-live": "polite" }, "Point at a token for its number, or go there with Tab and the arrow keys.");
    this.box.replaceChildren(
      html("h3", {}, "prompt"), html("blockquote", { dir: "auto" }, sample.prompt),
      html("div", { class: "sides" },
        sample.reference ? this.side("reference", sample.reference)
          : html("article", {}, html("h3", {}, "reference"), html("p", { class: "absent" }, "None of its completions was kept for this prompt.")),
        this.side("policy", sample.policy)),
      ...(this.has(this.shade) ? [this.legend(), this.reading] : []),
    );
  }

  side(title, side) {
    const text = html("p", { class: "completion", dir: "auto" });
    if (side.tokens.length) text.append(...side.tokens.map((token, index) => this.token(token, index === 0)));
    else text.append(side.text);
    const rows = [["reward", number(side.reward)], ["KL, nats", number(side.kl)], ["ended by", side.end || "–"]];
    if (side.components.length > 1) rows.push(...side.components.map(([name, value]) => [name, number(value)]));
    return html("article", {}, html("h3", {}, title), text, pairs(rows.filter((row) => row[1] !== "–")));
  }

  token([text, kl, advantage], first) {
    const value = this.shade === "kl" ? kl : advantage;
    const level = value === null ? 0 : DATA.levels[this.shade].filter((least) => Math.abs(value) >= least).length;
    const facts = [kl === null ? null : `KL ${number(kl, 4)} nats`, advantage === null ? null : `advantage ${number(advantage)}`].filter((fact) => fact);
    const span = html("span", { class: `token ${value < 0 ? "n" : "p"}${level}` }, text === "" ? "·" : text);
    // A line break is a token too, and must be seen to be shaded.
    if (text.includes("\n")) span.replaceChildren(...text.split("\n").flatMap((part, index) => (index ? [html("i", {}, "↵"), "\n", part] : [part])));
    if (facts.length) fill(span, { title: facts.join(", "), "data-facts": facts.join(", "), tabindex: first ? 0 : -1 }, []);
    return span;
  }

  legend() {
    const levels = DATA.levels[this.shade];
    const one = (sign, level) => html("span", { class: `token ${sign}${level}` }, `${sign === "n" ? "−" : ""}${levels[level - 1]}`);
    const column = this.shade === "kl" ? 1 : 2;
    const below = this.set.samples.some((sample) => [sample.policy, sample.reference].some((side) => side && side.tokens.some((token) => token[column] <= -levels[0])));
    const steps = levels.map((_, index) => index + 1);
    return html("p", { class: "legend" }, html("span", {}, `${SHADES[this.shade]}, at least`), ...(below ? steps.toReversed().map((level) => one("n", level)) : []), ...steps.map((level) => one("p", level)));
  }

  read(target) {
    const token = target instanceof Element ? target.closest(".token[data-facts]") : null;
    if (token && this.reading) this.reading.textContent = `“${token.textContent}”: ${token.dataset.facts}`;
  }
}
