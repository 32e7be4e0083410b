const figures = [...document.querySelectorAll(".figure")].map((place) => [place, place.firstElementChild.textContent]);
const style = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
const mouse = matchMedia("(pointer: fine)").matches;

function axis(more, nticks) {
  return { gridcolor: style("--line"), linecolor: style("--line"), zeroline: false, automargin: true, nticks, ...more };
}
async function draw([place, json]) {
  const { data, layout } = JSON.parse(json, (key, value) => /color$/.test(key) ? style(value.slice(4, -1)) : value);
  const font = { family: getComputedStyle(document.body).fontFamily, size: 12, color: style("--faint") };
  Object.assign(layout, {
    font, paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)", autosize: true, margin: { l: 8, r: 10, t: 14, b: 8 },
    hovermode: layout.hovermode ?? "x unified", dragmode: mouse ? "zoom" : false, xaxis: axis(layout.xaxis, place.clientWidth < 400 ? 5 : 7), yaxis: axis(layout.yaxis, 6),
    hoverlabel: { bgcolor: style("--card"), bordercolor: style("--line"), font: { ...font, color: style("--ink") } },
  });
  await Plotly.react(place, data, layout, { responsive: true, displayModeBar: false });
  place.dataset.drawn = "true";
}
async function drawAll() {
  await Promise.all(figures.map(draw));
  document.body.dataset.scrollWidth = document.documentElement.scrollWidth;
  document.body.dataset.innerWidth = innerWidth;
}

// Tables: a click, or Enter on a heading, sorts: the better first, then the worse, then as it was. What is no number comes last.
const shown = (row, column) => row.cells[column].dataset.value ?? row.cells[column].textContent;
const asNumber = (text) => /^[-−]?[\d.,]+/.test(text.trim()) || isFinite(Number(text)) ? parseFloat(text.replace("−", "-").replaceAll(",", "")) : NaN;
function compare(one, other, way) {
  const [a, b] = [asNumber(one), asNumber(other)];
  if (isNaN(a) !== isNaN(b)) return isNaN(a) ? 1 : -1;
  return way * (isNaN(a) ? one.localeCompare(other, undefined, { numeric: true }) : a - b);
}
function sort(button) {
  const [heading, table, column] = [button.closest("th"), button.closest("table"), Number(button.dataset.column)];
  const first = Number(button.dataset.better) > 0 ? "descending" : "ascending";
  const second = first === "ascending" ? "descending" : "ascending";
  const next = { none: first, [first]: second, [second]: "none" }[heading.ariaSort];
  const rows = [...table.tBodies[0].rows];
  rows.forEach((row, place) => { row.dataset.place ??= place; });
  rows.sort((a, b) => (next !== "none" && compare(shown(a, column), shown(b, column), next === "ascending" ? 1 : -1)) || a.dataset.place - b.dataset.place);
  table.tBodies[0].append(...rows);
  table.querySelectorAll("[aria-sort]").forEach((each) => { each.ariaSort = each === heading ? next : "none"; });
  document.getElementById("status").textContent = next === "none" ? "in the first order" : `sorted by ${button.textContent.trim()}, ${next}`;
}
document.querySelectorAll("th button").forEach((button) => button.addEventListener("click", () => sort(button)));

// Completions: those that hold some words, by one writer or by all; the first few until more are asked for.
const FEW = 8;
function filterable(box) {
  const [form, more, prompts] = [box.querySelector(".filter"), box.querySelector(".more"), [...box.querySelectorAll(".prompt")]];
  const [words, who, said] = form.elements.length ? [form.querySelector("input"), form.querySelector("select"), form.querySelector("output")] : [];
  let all = prompts.length <= FEW;
  const filter = () => {
    const wanted = words.value.toLowerCase().split(/\s+/).filter(Boolean);
    const found = prompts.filter((prompt) => {
      const cards = [...prompt.querySelectorAll(".card")];
      cards.forEach((card) => { card.hidden = who.value !== "" && !card.dataset.who.split("\n").includes(who.value); });
      const text = [prompt.firstElementChild, ...cards.filter((card) => !card.hidden)].map((each) => each.textContent.toLowerCase()).join("\n");
      return cards.some((card) => !card.hidden) && wanted.every((word) => text.includes(word));
    });
    const kept = new Set(all || wanted.length ? found : found.slice(0, FEW));
    prompts.forEach((prompt) => { prompt.hidden = !kept.has(prompt); });
    said.textContent = `${kept.size} of ${prompts.length} prompts`;
    more.hidden = kept.size === found.length;
  };
  form.hidden = prompts.length < 4;
  form.addEventListener("submit", (event) => event.preventDefault());
  form.addEventListener("input", filter);
  more.addEventListener("click", () => { all = true; filter(); });
  filter();
}
document.querySelectorAll(".samples").forEach(filterable);

// Paper is white, as wide as paper, and nothing on it can be unfolded.
addEventListener("beforeprint", () => {
  document.documentElement.dataset.theme = "light";
  document.documentElement.dataset.printing = "";
  document.querySelectorAll("details.folded:not([open])").forEach((each) => { each.open = true; each.dataset.folded = ""; });
  drawAll();
});
addEventListener("afterprint", () => {
  delete document.documentElement.dataset.theme;
  delete document.documentElement.dataset.printing;
  document.querySelectorAll("details[data-folded]").forEach((each) => { each.open = false; delete each.dataset.folded; });
  drawAll();
});
drawAll();
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", drawAll);
