// The answers side by side: filters, search, links to one item, keys.

const PAGE = 20; // items shown at a time
const LONG = 3000; // characters of an answer that are shown at first

function browse(data) {
  const at = (id) => document.getElementById(id);
  const items = data.items.map((item, place) => ({ ...item, place, haystack: haystackOf(item) }));
  const byId = new Map(items.map((item) => [item.id, item]));
  const trained = data.policies.map((p, n) => (p.iteration ? n : -1)).filter((n) => n >= 0);
  const base = data.policies.findIndex((p) => p.iteration === 0);
  const last = trained.length ? trained[trained.length - 1] : -1;
  const canCompare = base >= 0 && last >= 0;
  const hidden = new Set();
  let shown = [];
  let count = PAGE;
  let linked = null;

  const options = (select, list) => select.append(...list.map(([value, label]) => element("option", { value }, label)));
  const principles = data.principles.filter((name) => items.some((item) => item.principles.includes(name)));
  options(at("by-principle"), [["", "all"], ["learned", "all learned"], ["held-out", "all held out"], ...principles.map((name) => [`=${name}`, name])]);
  options(at("by-verdict"), [
    ["", "any"],
    ...(canCompare ? [["changed", "check changed from base"], ["gained", "check now passes"], ["lost", "check now fails"]] : []),
    ...(data.judges.length ? [["won", "a judge prefers it"], ["beaten", "a judge prefers the other"]] : []),
  ]);
  options(at("by-flag"), [["", "any"], ["any", "any finding except cut off"], ...Object.entries(data.flags)]);
  options(at("by-order"), [
    ["", "order of the run"],
    ...(canCompare ? [["drift", "largest change in length"], ["gain", "largest gain under frozen base"], ["loss", "largest loss under frozen base"]] : []),
  ]);
  data.policies.forEach((policy, n) => {
    const box = element("input", { type: "checkbox", checked: "" });
    box.addEventListener("change", () => {
      box.checked ? hidden.delete(n) : hidden.add(n);
      draw();
    });
    at("by-policy").append(element("label", {}, box, policy.name));
  });

  function haystackOf(item) {
    const texts = item.constitutions.flatMap((c) => [c.text, ...c.answers.map((a) => (a ? a.text : ""))]);
    return [item.query, ...texts].join("\n").toLowerCase();
  }

  const answersOf = (item, n) => item.constitutions.map((c) => c.answers[n]).filter(Boolean);
  const shownAnswers = (item) => data.policies.flatMap((_, n) => (hidden.has(n) ? [] : answersOf(item, n)));

  /** Checks of the last iteration compared with base's: +1 if one now passes, -1 if it now fails. */
  function changes(item) {
    if (!canCompare) return [];
    return item.constitutions.flatMap(({ answers }) => {
      const [before, after] = [answers[base]?.checks ?? [], answers[last]?.checks ?? []];
      return after.map((check, n) => Number(check[2]) - Number(before[n]?.[2] ?? check[2]));
    });
  }
  const judgements = (item) => item.constitutions.flatMap((c) => c.answers.flatMap((a) => a?.judged ?? []).map((j) => j[2]));
  const drift = (item) =>
    Math.max(0, ...item.constitutions.map(({ answers: a }) => (a[base] && a[last] ? Math.abs(a[last].words - a[base].words) : 0)));
  const gain = (item) => (item.frozen[last] === null || item.frozen[base] === null ? null : item.frozen[last] - item.frozen[base]);

  const VERDICTS = {
    changed: (item) => changes(item).some((c) => c !== 0),
    gained: (item) => changes(item).some((c) => c > 0),
    lost: (item) => changes(item).some((c) => c < 0),
    won: (item) => judgements(item).some((score) => score > 0.5),
    beaten: (item) => judgements(item).some((score) => score < 0.5),
  };

  function filter() {
    const wanted = at("search").value.trim().toLowerCase();
    const [principle, verdict, flag, order] = ["by-principle", "by-verdict", "by-flag", "by-order"].map((id) => at(id).value);
    shown = items.filter((item) => {
      if (wanted && !item.haystack.includes(wanted)) return false;
      if (principle === "learned" && !item.learned) return false;
      if (principle === "held-out" && item.learned) return false;
      if (principle.startsWith("=") && !item.principles.includes(principle.slice(1))) return false;
      if (verdict && !VERDICTS[verdict](item)) return false;
      if (flag) {
        const flags = shownAnswers(item).flatMap((a) => Object.keys(a.flags ?? {}));
        if (!flags.some((f) => (flag === "any" ? f !== "unfinished" : f === flag))) return false;
      }
      return true;
    });
    const key = { drift: (i) => -drift(i), gain: (i) => -(gain(i) ?? -Infinity), loss: (i) => gain(i) ?? Infinity }[order];
    if (key) shown.sort((a, b) => key(a) - key(b) || a.place - b.place);
    count = PAGE;
    draw();
  }

  function draw() {
    const wanted = at("search").value.trim().toLowerCase();
    at("items").replaceChildren(...shown.slice(0, count).map((item) => card(item, wanted)));
    const visible = Math.min(count, shown.length);
    at("count").textContent = `${visible} of ${shown.length} shown` + (shown.length < items.length ? `, ${items.length} in all` : "");
    at("more").hidden = visible >= shown.length;
    at("more").textContent = `Show ${Math.min(PAGE, shown.length - visible)} more`;
  }

  function card(item, wanted) {
    const link = `#item-${encodeURIComponent(item.id)}`;
    const heading = element("h3", {});
    write(heading, item.query, wanted);
    const figures = data.policies
      .map((policy, n) => (hidden.has(n) || item.frozen[n] === null ? null : `${policy.name} ${item.frozen[n].toFixed(3)}`))
      .filter(Boolean);
    const about =
      `${item.principles.join(", ")} (${item.learned ? "learned" : "held out"})` +
      (figures.length ? `; under the frozen base, nats: ${figures.join(", ")}` : "");
    const made = element(
      "article",
      { class: "card item" + (item.id === linked ? " linked" : ""), tabindex: "-1" },
      element("header", {}, heading, element("a", { class: "anchor", href: link, "aria-label": "Link to this item" }, "¶")),
      element("p", { class: "about" }, about),
    );
    made.dataset.item = item.id;
    for (const constitution of item.constitutions) {
      const asked = element("p", { class: "asked" });
      write(asked, constitution.text, wanted);
      made.append(asked, element("div", { class: "answers" }, ...constitution.answers.map((a, n) => (hidden.has(n) ? null : answer(a, n, wanted)))));
    }
    return made;
  }

  function answer(found, n, wanted) {
    const title = element("h4", {}, element("span", { class: `dot${n === base ? "" : ` series-${(n + 1) % 8}`}` }), data.policies[n].name);
    if (!found) return element("div", { class: "answer" }, title, element("p", { class: "note" }, "no answer"));
    const said = element("p", { class: "said", dir: "auto" });
    write(said, found.text.slice(0, LONG), wanted);
    if (!found.text) said.append(element("span", { class: "note" }, "(empty)"));
    const parts = [title, ...(found.reasoning ? [reasoning(found.reasoning)] : []), said];
    if (found.text.length > LONG) {
      const all = element("button", { type: "button", class: "quiet" }, `Show all ${found.text.length.toLocaleString("en")} characters`);
      all.addEventListener("click", () => {
        write(said, found.text, wanted);
        all.remove();
      });
      parts.push(all);
    }
    return element("div", { class: "answer" }, ...parts, element("ul", { class: "marks" }, ...marks(found)));
  }

  /** What a model wrote before its answer, folded: it is never trained on, checked or judged. */
  function reasoning(text) {
    const thought = element("p", { class: "thought", dir: "auto" });
    write(thought, text);
    return element("details", { class: "reasoning" }, element("summary", {}, "Reasoning (not trained on, checked, or judged)"), thought);
  }

  function marks(found) {
    const list = (found.checks ?? []).map(([name, positive, passed]) =>
      element("li", { class: passed ? "pass" : "fail" }, `${passed ? "✓" : "✗"} ${positive ? name : `not ${name}`}`),
    );
    for (const [flag, what] of Object.entries(found.flags ?? {})) {
      const mark = element("li", { class: flag === "unfinished" ? "" : "flag" });
      write(mark, `${data.flags[flag]}${flag === "unfinished" ? ` ${what}` : `: ${what}`}`);
      list.push(mark);
    }
    for (const [baseline, judge, score] of found.judged ?? []) {
      const outcome = score > 0.5 ? "better than" : score < 0.5 ? "worse than" : "tied with";
      list.push(element("li", { class: score > 0.5 ? "pass" : score < 0.5 ? "fail" : "" }, `${data.judges[judge]}: ${outcome} ${data.policies[baseline].name}`));
    }
    list.push(element("li", {}, `${found.words} words`));
    return list;
  }

  /** Show the item in the address, even where filters hide it. */
  function follow() {
    if (!location.hash.startsWith("#item-")) return;
    let id;
    try {
      id = decodeURIComponent(location.hash.slice(6));
    } catch {
      return;
    }
    const item = byId.get(id);
    if (!item) return;
    linked = id;
    if (!shown.includes(item)) clear();
    count = Math.max(count, shown.indexOf(item) + 1);
    draw();
    const made = [...at("items").children].find((one) => one.dataset.item === id);
    made.scrollIntoView({ block: "start", behavior: "instant" });
    made.focus({ preventScroll: true });
  }

  function clear() {
    for (const id of ["search", "by-principle", "by-verdict", "by-flag", "by-order"]) at(id).value = "";
    for (const box of at("by-policy").querySelectorAll("input")) box.checked = true;
    hidden.clear();
    filter();
  }

  function step(by) {
    const cards = [...at("items").children];
    const here = cards.indexOf(document.activeElement.closest?.(".item"));
    const next = cards[here < 0 ? (by > 0 ? 0 : -1) : here + by];
    if (!next) return;
    next.scrollIntoView({ block: "start", behavior: "instant" });
    next.focus({ preventScroll: true });
  }

  const form = document.querySelector(".filters[role=search]");
  let waiting = 0;
  at("search").addEventListener("input", () => {
    clearTimeout(waiting);
    waiting = setTimeout(filter, 120);
  });
  for (const id of ["by-principle", "by-verdict", "by-flag", "by-order"]) at(id).addEventListener("change", filter);
  form.addEventListener("submit", (event) => event.preventDefault());
  at("clear").addEventListener("click", clear);
  at("more").addEventListener("click", () => {
    count += PAGE;
    draw();
  });
  addEventListener("hashchange", follow);
  addEventListener("keydown", (event) => {
    if (isTyping(event) || document.querySelector("dialog[open]")) return;
    if (event.key === "/") {
      event.preventDefault();
      at("search").focus();
    } else if (event.key === "j" || event.key === "k") step(event.key === "j" ? 1 : -1);
  });

  at("no-browser").remove();
  at("browser").hidden = false;
  filter();
  follow();
}
