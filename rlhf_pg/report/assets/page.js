function sortable(box) {
  const body = box.querySelector("tbody");
  const heads = [...box.querySelectorAll("th")];
  heads.forEach((head, index) => {
    head.querySelector("button").addEventListener("click", () => {
      const down = head.getAttribute("aria-sort") === "ascending";
      for (const other of heads) other.setAttribute("aria-sort", "none");
      head.setAttribute("aria-sort", down ? "descending" : "ascending");
      const words = !head.classList.contains("n");
      const key = (row) => row.cells[index].dataset.value ?? (words ? row.cells[index].textContent : undefined);
      const order = (a, b) => {
        const [x, y] = [key(a), key(b)];
        // What was not measured comes last, whichever way is up.
        if (x === undefined || y === undefined) return (x === undefined) - (y === undefined);
        const both = Number(x) - Number(y);
        return (Number.isNaN(both) ? x.localeCompare(y, undefined, { numeric: true }) : both) * (down ? -1 : 1);
      };
      body.append(...[...body.rows].sort(order));
    });
  });
  const every = box.querySelector(".every");
  if (every) {
    every.addEventListener("click", () => {
      every.setAttribute("aria-pressed", String(box.classList.toggle("all")));
    });
  }
  for (const button of box.querySelectorAll(".pick")) {
    button.addEventListener("click", () => {
      pick(Number(button.closest("tr").dataset.tip));
      document.getElementById("picked").scrollIntoView({ block: "center" });
    });
  }
}

for (const spec of DATA.figures) new Chart(document.getElementById(`figure-${spec.id}`), spec);
for (const box of document.querySelectorAll(".table")) sortable(box);
const samples = DATA.samples.length ? new Samples(document.getElementById("sample-controls"), document.getElementById("sample")) : null;

document.addEventListener("pick", (event) => {
  const tip = DATA.tips[event.detail];
  const box = document.getElementById("picked");
  box.hidden = false;
  box.replaceChildren(html("h3", {}, tip.title), pairs(tip.rows));
  if (tip.command) box.append(html("h4", {}, "Reproduce it"), html("pre", { class: "command", tabindex: 0 }, tip.command));
  if (tip.config) box.append(html("details", {}, html("summary", {}, "configuration"), pairs(tip.config)));
  for (const row of document.querySelectorAll("tr[data-tip]")) row.classList.toggle("chosen", Number(row.dataset.tip) === event.detail);
  if (samples) samples.choose(tip.run, tip.step);
});
