// Draws the charts of the page when they come into view, in the colours of the reader's theme. No network, no storage.
"use strict";
(() => {
  const charts = JSON.parse(document.getElementById("charts").textContent);
  const INK = "#010203", dark = matchMedia("(prefers-color-scheme: dark)"), touch = matchMedia("(pointer: coarse)").matches;
  const dashes = ["", "7 4", "2 3", "7 3 2 3"];
  let printing = false;

  const theme = () => dark.matches && !printing
    ? { ink: "#e6e8ea", grid: "#2c3238", line: "#5b636b", ground: "#1d2126", blank: "#454b52" }
    : { ink: "#1b1f23", grid: "#e4e7ea", line: "#8c959f", ground: "#ffffff", blank: "rgba(0,0,0,0)" };

  // Every string that is the ink's colour becomes the theme's; typed arrays pass as they are.
  const inked = (value, ink) => {
    if (value === INK) return ink;
    if (Array.isArray(value)) return value.map((item) => inked(item, ink));
    if (value && typeof value === "object") return Object.fromEntries(Object.entries(value).map(([key, item]) => [key, inked(item, ink)]));
    return value;
  };

  const short = (text, most) => (text.length > most ? text.slice(0, most - 1) + "…" : text);

  const figureOf = (chart, view, width) => {
    const colours = theme(), figure = inked(chart.views[view].figure, colours.ink), layout = figure.layout;
    Object.assign(layout, {
      width, autosize: false, showlegend: false, paper_bgcolor: "rgba(0,0,0,0)",
      plot_bgcolor: layout.meta.cells ? colours.blank : "rgba(0,0,0,0)",
      dragmode: touch ? false : "zoom", font: { color: colours.ink, size: 12, family: getComputedStyle(document.body).fontFamily },
      hoverlabel: { bgcolor: colours.ground, bordercolor: colours.line, font: { color: colours.ink }, align: "left", namelength: -1 },
    });
    for (const [name, axis] of Object.entries(layout)) {
      if (!/^[xy]axis\d*$/.test(name)) continue;
      Object.assign(axis, { gridcolor: colours.grid, linecolor: colours.line, tickcolor: colours.line, showline: true, ticks: "outside", ticklen: 4 });
      if (axis.ticktext && width < 500) {
        const every = name[0] === "x" ? Math.ceil(axis.ticktext.length / 8) : 1;
        axis.ticktext = axis.ticktext.map((text, place) => (place % every ? "" : short(text, name[0] === "y" ? 16 : 12)));
      }
    }
    return figure;
  };

  const swatch = (entry) => {
    const colour = entry.colour === INK ? "currentColor" : entry.colour;
    const marks = {
      circle: "<circle cx='12' cy='6' r='4'/>", square: "<rect x='8.5' y='2.5' width='7' height='7'/>", triangle: "<path d='M12 1.5l4.5 8h-9z'/>",
      diamond: "<path d='M12 1l5 5-5 5-5-5z'/>", cross: "<path d='M10.5 1.5h3v3h3v3h-3v3h-3v-3h-3v-3h3z'/>",
      star: "<path d='M12 1l1.4 3.3 3.6.3-2.7 2.3.8 3.5L12 8.5l-3.1 1.9.8-3.5L7 4.6l3.6-.3z'/>",
    };
    const line = entry.look === "line" ? `<path d='M0 6h24' stroke='${colour}' stroke-width='2' stroke-dasharray='${dashes[entry.dash]}'/>` : "";
    const mark = entry.look === "cell" ? "<rect x='6' y='1' width='12' height='10'/>" : entry.shape ? marks[entry.shape] : "";
    return `<svg width='24' height='12' viewBox='0 0 24 12' fill='${colour}' aria-hidden='true'>${line}${mark}</svg>`;
  };

  const explain = (box, list, figure) => {
    const entries = figure.layout.meta.legend;
    list.replaceChildren();
    if (entries.length < 2 && !entries.some((entry) => entry.look === "cell" && !entry.traces.length)) return;
    for (const entry of entries) {
      const item = document.createElement("li"), button = document.createElement("button");
      button.type = "button";
      button.innerHTML = swatch(entry);
      button.append(entry.label);
      button.disabled = !entry.traces.length;
      button.setAttribute("aria-pressed", "true");
      button.addEventListener("click", () => {
        const on = button.getAttribute("aria-pressed") !== "true";
        button.setAttribute("aria-pressed", String(on));
        Plotly.restyle(box, { visible: on }, entry.traces);
      });
      item.append(button);
      list.append(item);
    }
  };

  const settings = { displaylogo: false, responsive: false, modeBarButtonsToRemove: ["select2d", "lasso2d", "autoScale2d"], displayModeBar: touch ? false : "hover" };

  const draw = (box) => {
    const chart = charts[box.id], figure = box.closest("figure"), select = figure.querySelector("select");
    const view = select ? select.selectedIndex : 0, width = Math.floor(box.clientWidth);
    if (!width) return;
    const drawn = figureOf(chart, view, width);
    Plotly.react(box, drawn.data, drawn.layout, { ...settings, toImageButtonOptions: { filename: box.id, scale: 3 } });
    if (box.dataset.view !== String(view)) explain(box, figure.querySelector(".legend"), chart.views[view].figure);
    Object.assign(box.dataset, { view, width, drawn: "yes" });
  };

  const boxes = [...document.querySelectorAll(".chart")];
  const seen = new IntersectionObserver((entries) => {
    for (const entry of entries) if (entry.isIntersecting && !entry.target.dataset.drawn) draw(entry.target);
  }, { rootMargin: "600px" });
  for (const box of boxes) {
    seen.observe(box);
    box.closest("figure").querySelector("select")?.addEventListener("change", () => draw(box));
  }
  let waiting;
  addEventListener("resize", () => {
    clearTimeout(waiting);
    waiting = setTimeout(() => boxes.filter((box) => box.dataset.drawn && box.dataset.width !== String(Math.floor(box.clientWidth))).forEach(draw), 150);
  });
  dark.addEventListener("change", () => boxes.filter((box) => box.dataset.drawn).forEach(draw));
  // Paper is white, and what was never scrolled to is printed too.
  const paper = (on) => {
    printing = on;
    document.documentElement.classList.toggle("paper", on);
    boxes.forEach(draw);
  };
  addEventListener("beforeprint", () => paper(true));
  addEventListener("afterprint", () => paper(false));
})();
