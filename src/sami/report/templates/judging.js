// Blind judging: pairs in random order and on random sides, with progress stored in the browser and verdicts saved to a file.

/** Numbers from 0 to 1 that depend only on the seed (mulberry32), so that an order can be resumed. */
function randomOf(seed) {
  return () => {
    seed = (seed + 0x6d2b79f5) | 0;
    let t = Math.imul(seed ^ (seed >>> 15), 1 | seed);
    t = (t + Math.imul(t ^ (t >>> 7), 61 | t)) ^ t;
    return ((t ^ (t >>> 14)) >>> 0) / 4294967296;
  };
}

function judging(data, runKey) {
  const at = (id) => document.getElementById(id);
  const dialog = at("judging");
  const pairs = data.policies.flatMap((candidate, c) =>
    data.policies.flatMap((_, b) => (b !== c && (candidate.iteration ?? 0) > 0 && !(data.policies[b].iteration > 0) ? [[c, b]] : [])),
  );
  if (!pairs.length) {
    for (const one of document.querySelectorAll("[data-open-judging]")) one.remove();
    return;
  }
  pairs.reverse();
  at("judging-pair").append(...pairs.map(([c, b], n) => element("option", { value: String(n) }, `${data.policies[c].name} and ${data.policies[b].name}`)));
  const memory = new Map();
  let isKept = true;
  let session = null;

  function load(key) {
    try {
      return JSON.parse(localStorage.getItem(key) ?? "null");
    } catch {
      isKept = false;
      return memory.get(key) ?? null;
    }
  }
  function save(key, value) {
    memory.set(key, value);
    try {
      localStorage.setItem(key, JSON.stringify(value));
    } catch {
      isKept = false;
    }
  }
  function forget(key) {
    memory.delete(key);
    try {
      localStorage.removeItem(key);
    } catch {
      isKept = false;
    }
  }

  const keyOf = () => `sami ${runKey} ${at("judging-pair").value} ${at("judging-scope").value}`;

  function begin() {
    const key = keyOf();
    const [candidate, baseline] = pairs[Number(at("judging-pair").value)];
    const scope = at("judging-scope").value;
    const state = load(key) ?? { seed: crypto.getRandomValues(new Uint32Array(1))[0], said: {} };
    save(key, state);
    const random = randomOf(state.seed);
    const questions = data.items
      .filter((item) => scope === "all" || item.learned === (scope === "learned"))
      .flatMap((item) => item.constitutions.map((constitution, n) => ({ item, constitution, id: `${item.id}/${n}` })))
      .filter(({ constitution }) => constitution.answers[candidate] && constitution.answers[baseline]);
    for (let n = questions.length - 1; n > 0; n--) {
      const other = Math.floor(random() * (n + 1));
      [questions[n], questions[other]] = [questions[other], questions[n]];
    }
    for (const question of questions) {
      question.isCandidateFirst = random() < 0.5;
      question.answers = [question.constitution.answers[candidate], question.constitution.answers[baseline]];
      question.isSame = question.answers[0].text === question.answers[1].text;
    }
    session = { key, state, questions, candidate, baseline };
    at("judging-start").hidden = true;
    at("judging-run").hidden = false;
    show();
  }

  const isDone = (question) => question.isSame || question.id in session.state.said;

  function show() {
    const { questions, state } = session;
    const open = questions.find((question) => !isDone(question));
    const toAsk = questions.filter((question) => !question.isSame);
    const done = toAsk.filter(isDone).length;
    const same = questions.length - toAsk.length;
    at("judging-bar").max = Math.max(1, toAsk.length);
    at("judging-bar").value = done;
    at("judging-count").textContent = `${done} of ${toAsk.length}` + (same ? `; ${same} pairs with identical text count as ties and are not shown` : "");
    at("judging-kept").textContent = isKept
      ? "Progress stays in this browser until you start over."
      : "This browser does not store data for pages opened from a file: save your verdicts before you close the page.";
    at("judging-question").hidden = !open;
    at("judging-done").hidden = Boolean(open);
    session.open = open;
    if (open) {
      const [a, b] = open.isCandidateFirst ? open.answers : [...open.answers].reverse();
      write(at("judging-query"), open.item.query);
      write(at("judging-constitution"), open.constitution.text);
      for (const [id, answer] of [["judging-a", a], ["judging-b", b]]) {
        write(at(id), answer.text || "(empty)");
        at(id).scrollTop = 0;
      }
      at("judging-question").focus({ preventScroll: true });
    } else {
      const scores = toAsk.map((q) => scoreOf(q, state.said[q.id])).filter((score) => score !== null);
      const wins = scores.filter((s) => s === 1).length;
      const losses = scores.filter((s) => s === 0).length;
      const [candidate, baseline] = [session.candidate, session.baseline].map((n) => data.policies[n].name);
      at("judging-done").firstElementChild.textContent =
        `All pairs are judged. You preferred ${candidate} ${wins} times and ${baseline} ${losses} times, ` +
        `${scores.length - wins - losses} ties and ${toAsk.length - scores.length} skipped. Save the verdicts and run sami winrate for intervals.`;
      at("judging-done").focus();
    }
  }

  function scoreOf(question, said) {
    if (said === "tie") return 0.5;
    if (said !== "A" && said !== "B") return null;
    return Number((said === "A") === question.isCandidateFirst);
  }

  function say(what) {
    if (!session) return;
    const { state } = session;
    if (what === "undo") {
      const last = Object.keys(state.said).pop();
      if (last === undefined) return;
      delete state.said[last];
    } else if (session.open) state.said[session.open.id] = what;
    else return;
    save(session.key, state);
    show();
  }

  /** One verdict per line, in the format of verdicts.jsonl. Identical texts count as ties up to the last judged pair. */
  function lines() {
    const { questions, state, candidate, baseline } = session;
    const last = questions.findLastIndex((question) => question.id in state.said);
    return questions.slice(0, last + 1).flatMap((question) => {
      const score = question.isSame ? 0.5 : scoreOf(question, state.said[question.id]);
      if (score === null) return [];
      const [own, other] = question.answers;
      const verdict = {
        query_id: question.item.query_id,
        candidate: data.policies[candidate].name,
        baseline: data.policies[baseline].name,
        judge: "human",
        order: question.isCandidateFirst ? "candidate_first" : "baseline_first",
        score,
        candidate_chars: [...own.text].length,
        baseline_chars: [...other.text].length,
        candidate_tokens: own.tokens,
        baseline_tokens: other.tokens,
        raw: question.isSame ? "identical responses" : state.said[question.id],
        cost: null,
        constitution_id: question.id,
        principles: question.constitution.principles,
        learned: question.item.learned,
      };
      return [JSON.stringify(verdict) + "\n"];
    });
  }

  function download() {
    if (!session) begin();
    const made = lines();
    if (!made.length) return void (at("judging-kept").textContent = "There is no verdict to save yet.");
    const url = URL.createObjectURL(new Blob(made, { type: "application/jsonl" }));
    element("a", { href: url, download: "human-verdicts.jsonl" }).click();
    setTimeout(() => URL.revokeObjectURL(url), 10_000);
    at("judging-kept").textContent = `${made.length} verdicts saved to human-verdicts.jsonl.`;
  }

  function toStart() {
    session = null;
    at("judging-start").hidden = false;
    at("judging-run").hidden = true;
    at("judging-begin").textContent = load(keyOf()) ? "Resume" : "Begin";
    at("judging-kept").textContent = "";
  }

  for (const one of document.querySelectorAll("[data-open-judging]"))
    one.addEventListener("click", () => {
      toStart();
      dialog.showModal();
    });
  dialog.querySelector("[data-close]").addEventListener("click", () => dialog.close());
  at("judging-begin").addEventListener("click", begin);
  at("judging-pair").addEventListener("change", toStart);
  at("judging-scope").addEventListener("change", toStart);
  at("judging-export").addEventListener("click", download);
  at("judging-reset").addEventListener("click", () => {
    if (!confirm("Delete your verdicts on this pair from this browser?")) return;
    forget(keyOf());
    toStart();
  });
  for (const button of dialog.querySelectorAll("[data-say]")) button.addEventListener("click", () => say(button.dataset.say));
  dialog.addEventListener("keydown", (event) => {
    if (isTyping(event)) return;
    const what = { a: "A", b: "B", t: "tie", s: "skip", u: "undo" }[event.key.toLowerCase()];
    if (!what || !session) return;
    event.preventDefault();
    say(what);
  });
}

const held = document.getElementById("data");
if (held) {
  const text = JSON.parse(held.textContent);
  // Verdicts belong to these exact answers, so the storage key is a digest of them.
  let digest = 0;
  for (let n = 0; n < text.length; n++) digest = (Math.imul(digest, 31) + text.charCodeAt(n)) | 0;
  unpacked(text).then((data) => {
    browse(data);
    judging(data, `${text.length}.${digest >>> 0}`);
  });
}
