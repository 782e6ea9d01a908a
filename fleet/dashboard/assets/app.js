// What the page does beyond HTML: changes arrive by themselves, the filter works
// while one types, arrow keys walk the grid. Without this file everything still works.
(() => {
  'use strict';
  const $ = (id) => document.getElementById(id);

  // Dark and light.
  const theme = $('theme');
  theme?.addEventListener('submit', (e) => {
    e.preventDefault();
    const root = document.documentElement;
    const now = root.dataset.theme || (matchMedia('(prefers-color-scheme: dark)').matches ? 'dark' : 'light');
    root.dataset.theme = now === 'dark' ? 'light' : 'dark';
    document.cookie = `theme=${root.dataset.theme}; path=/; max-age=31536000; samesite=strict`;
  });

  // Moments, counted on.
  const units = [[86400, 'd'], [3600, 'h'], [60, 'min'], [1, 's']];
  const span = (s) => {
    const [size, name] = units.find(([u]) => s >= (u === 1 ? 0 : u === 86400 ? 2 * u : u));
    return `${Math.floor(s / size)} ${name}`;
  };
  const count = () => {
    for (const t of document.querySelectorAll('time[data-ago]')) {
      const text = `${span(Math.max(0, (Date.now() - Date.parse(t.dateTime)) / 1000))} ago`;
      if (t.textContent !== text) t.textContent = text;
    }
  };
  count();
  setInterval(count, 5000);

  // Parts of a newer page in place of those here.
  const parse = (html) => {
    const t = document.createElement('template');
    t.innerHTML = html; // written and escaped by the server
    return t.content;
  };
  const put = (id, fresh, keep) => {
    const old = $(id);
    const next = fresh.getElementById(id);
    if (!old || !next || old.outerHTML === next.outerHTML) return;
    if (keep) for (const d of old.querySelectorAll('details[open][id]')) next.querySelector(`#${d.id}`)?.setAttribute('open', '');
    const focused = old.contains(document.activeElement) ? document.activeElement.id : '';
    old.replaceWith(document.adoptNode(next));
    if (focused) $(focused)?.focus();
  };
  let asking = null;
  const fetchPage = async (url) => {
    asking?.abort();
    asking = new AbortController();
    const answer = await fetch(url, { signal: asking.signal, headers: { Accept: 'text/html' } });
    if (answer.redirected && new URL(answer.url).pathname === '/login') { location.reload(); return null; }
    if (!answer.ok && answer.status !== 400 && answer.status !== 404) throw new Error(`the page answers ${answer.status}`);
    return new DOMParser().parseFromString(await answer.text(), 'text/html');
  };
  const parts = ['trouble', 'open', 'summary', 'self', 'now', 'result', 'instance', 'rollouts', 'rollout', 'incidents'];
  const look = async () => {
    try {
      const fresh = await fetchPage(location.href);
      if (!fresh) return;
      // An instance that is gone, the first one of a fleet: it is another page.
      if (parts.some((id) => !$(id) !== !fresh.getElementById(id))) { location.reload(); return; }
      for (const id of parts) put(id, fresh, true);
      document.body.dataset.events = fresh.body.dataset.events || '';
      count();
    } catch (e) {
      if (e.name !== 'AbortError') later();
    }
  };

  // Changes.
  const live = $('live');
  const said = $('said');
  let source = null;
  let worse = new Map();
  let saying = 0;
  const say = () => { // not more than people can listen to
    saying = 0;
    const all = [...worse];
    worse = new Map();
    if (all.length > 3) said.textContent = `${all.length} instances have changed.`;
    else if (all.length) said.textContent = all.map(([name, state]) => `${name} is ${state}.`).join(' ');
  };
  const exchange = (id, html) => {
    const old = $(id);
    const next = parse(html).firstElementChild;
    if (!old || !next) return;
    const before = old.classList[old.classList.contains('c') ? 1 : 0];
    const after = next.classList[next.classList.contains('c') ? 1 : 0];
    const focused = document.activeElement;
    const inside = focused && old.contains(focused) ? focused : null;
    if (old.tabIndex === 0) next.tabIndex = 0;
    old.replaceWith(next);
    if (inside) (inside === old ? next : next.querySelector('a') || next).focus();
    if (before !== after) {
      next.classList.add('changed');
      if (next.classList.contains('c')) {
        worse.set(next.id.slice(2), after);
        saying ||= setTimeout(say, 2000);
      }
    }
  };
  const tell = (e) => {
    const news = JSON.parse(e.data);
    if (news.reload) { look(); return; }
    for (const [name, html] of Object.entries(news.rows || {})) exchange(`r-${name}`, html);
    for (const [name, html] of Object.entries(news.cells || {})) exchange(`c-${name}`, html);
    const beside = { ...news.news };
    if (news.summary) beside.summary = news.summary;
    for (const [id, html] of Object.entries(beside)) $(id)?.replaceChildren(parse(html));
    if (news.stale && $('stale')) $('stale').hidden = false;
    count();
  };
  let waiting = 0;
  const lost = () => {
    live.className = 'live lost';
    live.textContent = 'reconnecting';
  };
  const later = () => { // no answer, or none of this page
    source?.close();
    lost();
    clearTimeout(waiting);
    waiting = setTimeout(() => { listen(); look(); }, 15000);
  };
  // What has changed since the page was made is told at once.
  const listen = () => {
    clearTimeout(waiting);
    source?.close();
    source = null;
    const url = document.body.dataset.events;
    if (!url || document.hidden) return;
    source = new EventSource(url);
    live.hidden = false;
    source.onopen = () => { live.className = 'live'; live.textContent = 'live'; };
    source.onerror = () => {
      lost();
      if (source?.readyState === EventSource.CLOSED) later();
    };
    source.onmessage = tell;
  };
  listen();
  // A hidden page is not told; it catches up when it is looked at.
  document.addEventListener('visibilitychange', listen);
  addEventListener('pagehide', () => source?.close());
  addEventListener('pageshow', (e) => { if (e.persisted) listen(); });

  // The filter, while one types.
  const filter = $('filter');
  if (filter) {
    filter.classList.add('live-filter');
    let waiting = 0;
    const show = async () => {
      const q = new URLSearchParams();
      for (const [k, v] of new FormData(filter)) if (v) q.append(k, v);
      const url = q.size ? `/?${q}` : '/';
      $('result').setAttribute('aria-busy', 'true');
      try {
        const fresh = await fetchPage(url);
        if (!fresh) return;
        history.replaceState(null, '', url);
        put('summary', fresh);
        put('result', fresh);
        document.body.dataset.events = fresh.body.dataset.events || '';
        listen();
        count();
        said.textContent = $('found')?.querySelector('span')?.textContent || '';
      } catch (e) {
        if (e.name !== 'AbortError') filter.submit();
      } finally {
        $('result')?.removeAttribute('aria-busy');
      }
    };
    const later = (ms) => { clearTimeout(waiting); waiting = setTimeout(show, ms); };
    filter.addEventListener('input', (e) => later(e.target.tagName === 'SELECT' ? 0 : 180));
    filter.addEventListener('submit', (e) => { e.preventDefault(); later(0); });
    document.addEventListener('keydown', (e) => {
      if (e.key === '/' && !e.ctrlKey && !e.metaKey && !e.altKey && !e.target.closest('input, select, textarea')) {
        e.preventDefault();
        filter.elements.q.focus();
        filter.elements.q.select();
      }
    });
  }

  // Arrow keys in the grid, which is one stop of the tab key.
  const enter = () => {
    const all = document.querySelector('.grid-all');
    if (all && !all.querySelector('.c[tabindex="0"]')) all.querySelector('.c')?.setAttribute('tabindex', '0');
  };
  enter();
  new MutationObserver(enter).observe($('main'), { childList: true, subtree: true });
  document.addEventListener('keydown', (e) => {
    const at = document.activeElement;
    if (!at?.classList.contains('c') || e.ctrlKey || e.metaKey || e.altKey) return;
    const cells = [...document.querySelectorAll('.grid-all .c')];
    const i = cells.indexOf(at);
    const mine = at.getBoundingClientRect();
    const row = (step) => {
      for (let j = i + step; j >= 0 && j < cells.length; j += step) {
        const r = cells[j].getBoundingClientRect();
        if (Math.abs(r.left - mine.left) < r.width / 2 && r.top !== mine.top) return j;
      }
      return i;
    };
    const to = { ArrowRight: i + 1, ArrowLeft: i - 1, Home: 0, End: cells.length - 1 }[e.key] ?? ({ ArrowDown: 1, ArrowUp: -1 }[e.key] ? row(e.key === 'ArrowDown' ? 1 : -1) : -1);
    if (to < 0 || to >= cells.length || to === i) return;
    e.preventDefault();
    at.tabIndex = -1;
    cells[to].tabIndex = 0;
    cells[to].focus();
  });
})();
