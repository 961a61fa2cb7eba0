// The page that people begin with: the studies with their pictures, what is labelled, and how the rounds stand.
(() => {
  'use strict';

  const PAGE = 60;
  const byId = id => document.getElementById(id);
  const list = byId('studies');
  // Milliseconds until the list is asked for again.
  const LOOK_AGAIN = 10_000;
  let asked = 0;
  let shown = '';

  async function ask(path) {
    const answer = await fetch(path, { headers: { Accept: 'application/json' } });
    const told = await answer.json().catch(() => null);
    if (!answer.ok) {
      throw new Error((told && told.detail) || `The server answered ${answer.status}.`);
    }
    return told;
  }

  function element(name, kind, text) {
    const made = document.createElement(name);
    made.className = kind;
    made.textContent = text;
    return made;
  }

  function pictureOf(study) {
    const frame = element('div', 'picture', '');
    const picture = document.createElement('img');
    picture.alt = '';
    picture.loading = 'lazy';
    picture.addEventListener('error', () => frame.replaceChildren(document.createTextNode('no picture')));
    picture.src = study.picture;
    frame.append(picture);
    return frame;
  }

  // Without log-in the server knows a browser's number alone, which says nothing to people.
  const person = name => (name && !name.startsWith('browser-') ? name : '');

  function labelOf(label) {
    const at = label && label.at ? new Date(label.at).toLocaleDateString() : '';
    const by = label ? person(label.by) : '';
    return ['\u2713 labelled', by && `by ${by}`, at].filter(Boolean).join(' ');
  }

  function entryOf(study) {
    const link = document.createElement('a');
    link.href = `viewer/annotate?StudyInstanceUIDs=${encodeURIComponent(study.study)}`;
    const about = [study.modality, study.planes > 1 ? `${study.planes} planes` : '', study.date];
    link.append(
      pictureOf(study),
      element('div', 'name', study.name),
      element('div', 'about', study.fault || about.filter(Boolean).join(', '))
    );
    if (study.labelled) {
      link.append(element('div', 'done', labelOf(study.label)));
      const { review } = study.label || {};
      if (review) {
        const verdict = review.verdict === 'approved' ? 'approved' : 'rejected';
        link.append(element('div', verdict, [verdict, review.by && `by ${review.by}`, review.reason].filter(Boolean).join(', ')));
      }
    } else if (study.lease) {
      link.append(element('div', 'about', `kept for ${person(study.lease.holder) || 'somebody'}`));
    } else if (study.tags.length) {
      link.append(element('div', 'about', 'pre-annotation'));
    }
    const item = document.createElement('li');
    item.append(link);
    return item;
  }

  function fail(error) {
    byId('problem').textContent = error instanceof TypeError ? 'The server does not answer.' : error.message;
    byId('problem').hidden = false;
  }

  async function show(from) {
    const turn = ++asked;
    const query = new URLSearchParams({ offset: from, limit: PAGE, q: byId('words').value });
    if (byId('labelled').value) {
      query.set('labelled', byId('labelled').value);
    }
    try {
      const told = await ask(`viewer/api/studies?${query}`);
      if (turn !== asked) {
        return; // another was asked for meanwhile
      }
      byId('problem').hidden = told.total > 0;
      byId('problem').textContent = told.total ? '' : 'No study fits.';
      const answer = JSON.stringify(told);
      if (!from && answer === shown) {
        return; // the pictures stay as they are
      }
      shown = from ? '' : answer;
      const items = told.studies.map(entryOf);
      if (from) {
        list.append(...items);
      } else {
        list.replaceChildren(...items);
      }
      byId('more').hidden = list.children.length >= told.total;
    } catch (error) {
      fail(error);
    }
  }

  byId('more').addEventListener('click', () => show(list.children.length));
  byId('filter').addEventListener('submit', event => event.preventDefault());
  byId('labelled').addEventListener('change', () => show(0));
  let typing;
  byId('words').addEventListener('input', () => {
    clearTimeout(typing);
    typing = setTimeout(() => show(0), 200);
  });
  function look() {
    show(0);
    ask('viewer/api/state').then(told => (byId('state').textContent = told.sentence), fail);
  }

  look();
  // studies come and are labelled while the page is open; further pages of the list stay
  setInterval(() => !document.hidden && list.children.length <= PAGE && look(), LOOK_AGAIN);
})();
