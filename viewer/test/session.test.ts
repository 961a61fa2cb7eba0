import { beforeEach, describe, expect, it } from 'vitest';
import { Api } from '../src/api';
import { Session } from '../src/session';
import { keysOf, SHORTCUTS, Shortcuts } from '../src/shortcuts';

const IMAGE = {
  image: 'ct 1',
  name: 'CT 1',
  modality: 'CT',
  rows: 4,
  columns: 5,
  spacing_mm: [2, 1, 1],
  planes: ['a', 'b', 'c', 'd', 'e'].map((sop) => ({ sop, frame: 1 })),
};

interface Asked {
  method: string;
  path: string;
  body: Record<string, unknown> | undefined;
}

/** Answers as the server does, from a table of paths. */
class Server {
  asked: Asked[] = [];
  readonly answers = new Map<string, (asked: Asked) => Response>();

  constructor() {
    this.json('GET viewer/api/image', IMAGE);
    this.answers.set('GET viewer/api/drafts/ct%201', () => new Response(null, { status: 204 }));
    this.answers.set('GET viewer/api/labels/ct%201', () => new Response(null, { status: 204 }));
    this.answers.set('GET viewer/api/proposals/ct%201', () => new Response(null, { status: 204 }));
    this.answers.set('GET viewer/api/readers/ct%201', () => new Response(null, { status: 204 }));
    this.answers.set('DELETE viewer/api/drafts/ct%201', () => new Response(null, { status: 204 }));
    this.answers.set('PUT viewer/api/drafts/ct%201', ({ body }) => Response.json({ ...body, revision: 1 }));
  }

  json(where: string, body: unknown, status = 200): void {
    this.answers.set(where, () => Response.json(body, { status }));
  }

  lines(where: string, ...given: object[]): void {
    const body = given.map((line) => `${JSON.stringify(line)}\n`).join('');
    this.answers.set(where, () => new Response(body, { headers: { 'Content-Type': 'application/x-ndjson' } }));
  }

  readonly fetch = (input: string | URL | Request, init?: RequestInit): Promise<Response> => {
    const path = (input as string).replace(/^\//, '').split('?')[0] ?? '';
    const body = typeof init?.body === 'string' ? (JSON.parse(init.body) as Record<string, unknown>) : undefined;
    const asked = { method: init?.method ?? 'GET', path, body };
    this.asked.push(asked);
    const answer = this.answers.get(`${asked.method} ${path}`);
    return answer ? Promise.resolve(answer(asked)) : Promise.reject(new TypeError(`nobody answers ${path}`));
  };

  last(where: string): Asked | undefined {
    return this.asked.findLast((each) => `${each.method} ${each.path}` === where);
  }
}

const segment = (name: string, plane: number, runs: number[]) => ({ name, planes: [{ plane, runs }] });

describe('a session', () => {
  let server: Server;
  let session: Session;
  const names = (): string[] => session.findings.map((each) => each.name);

  beforeEach(async () => {
    const kept = new Map<string, string>();
    const storage = { getItem: (key: string) => kept.get(key) ?? null, setItem: (k: string, v: string) => kept.set(k, v) };
    server = new Server();
    session = new Session(new Api('/', server.fetch), storage);
    await session.show({ study: 's', series: 't', instance: 'c', frame: 1 });
  });

  it.each([
    ['CT', [2, 1, 1], true],
    ['CT', null, true],
    [null, [6, 1, 1], true],
    [null, null, false],
    ['US', [null, 1, 1], false],
  ])('takes planes of modality %s and spacing %s for a volume: %s', async (modality, spacing, expected) => {
    const planes = ['x', 'y'].map((sop) => ({ sop, frame: 1 }));
    server.json('GET viewer/api/image', { ...IMAGE, modality, spacing_mm: spacing, planes });
    await session.show({ study: 's', series: 'another', instance: 'y', frame: 1 });
    expect(session.isVolume).toBe(expected);
  });

  it('knows which plane is shown', async () => {
    expect(session.plane).toBe(2);
    await session.show({ study: 's', series: 't', instance: 'e', frame: 1 });
    expect(session.plane).toBe(4);
    expect(server.asked.filter((each) => each.path === 'viewer/api/image')).toHaveLength(1);
  });

  describe('that a reviewer opens where readers disagree', () => {
    const told = {
      dice: 0.5,
      readers: ['ada', 'ben'].map((reader, k) => ({
        reader,
        version: `v${k}`,
        saved: null,
        segments: [segment('heart', 1, [k, 4])],
      })),
      structures: { heart: { pairs: [{ readers: ['ada', 'ben'], dice: 0.5 }] } },
    };
    const versions = { ada: 'v0', ben: 'v1' };

    beforeEach(async () => {
      server.json('GET viewer/api/readers/ct%201', told);
      server.json('PUT readers/ct%201/consensus', {});
      await session.show({ study: 's', series: 'another', instance: 'c', frame: 1 });
      await session.show({ study: 's', series: 'third', instance: 'z', frame: 1 });
    });

    it('shows both readings, neither of them as its own', () => {
      expect(session.adjudication?.readings.map((each) => each.reader)).toEqual(['ada', 'ben']);
      expect(names()).toEqual([]);
      expect(session.draftState).toBe('none');
    });

    it('takes one of them as it was seen, and shows the consensus', async () => {
      server.answers.set('GET viewer/api/readers/ct%201', () => new Response(null, { status: 204 }));
      server.json('GET viewer/api/labels/ct%201', {
        ...{ segments: [segment('heart', 1, [1, 4])], version: 'v2', by: 'rob', at: '2026-01-01T00:00:00+00:00' },
        consensus: true,
      });
      await session.adjudicate({ method: 'reader', reader: 'ben' });
      expect(server.last('PUT readers/ct%201/consensus')?.body).toEqual({ method: 'reader', reader: 'ben', seen: versions });
      expect(session.adjudication).toBeNull();
      expect(session.findings[0]?.planes.get(1)).toEqual([1, 4]);
      expect(session.base).toBe('v2');
    });

    it('saves an edited copy as the consensus, and not as a reading', async () => {
      session.copyReading('ada');
      const heart = session.findings[0];
      expect(heart?.planes.get(1)).toEqual([0, 4]);
      if (heart) {
        session.draw(heart, 1, [0, 3], 'eraser');
      }
      await session.save();
      const sent = server.last('PUT readers/ct%201/consensus')?.body;
      expect(sent).toMatchObject({ method: 'drawn', segments: [segment('heart', 1, [0, 3])], seen: versions });
      expect(server.last('PUT viewer/api/labels/ct%201')).toBeUndefined();
    });

    it('looks again where a reader has saved meanwhile', async () => {
      server.json('PUT readers/ct%201/consensus', { detail: 'A reader has saved meanwhile.' }, 409);
      server.json('GET viewer/api/readers/ct%201', { ...told, dice: 0.9 });
      await session.adjudicate({ method: 'staple' });
      expect(session.error).toBe('A reader has saved meanwhile.');
      expect(session.adjudication?.told.dice).toBe(0.9);
    });
  });

  it('keeps hand-drawn and earlier findings when a text finds nothing', async () => {
    const drawn = session.begin('my cyst');
    session.draw(drawn, 2, [3, 4], 'brush');
    const targets = [{ name: 'heart', presence_score: 0.1, presence_threshold: 0.5, reason: 'heart: not found.' }];
    server.lines('POST infer/text_prompt', { event: 'result', params: { targets }, segments: [{ name: 'heart', planes: [] }] });
    await session.run('heart');
    expect(names()).toEqual(['my cyst', 'heart']);
    expect(session.findings[0]?.planes.get(2)).toEqual([3, 4]);
    expect(session.findings[1]?.evidence).toMatchObject({ presence: 0.1, threshold: 0.5, reason: 'heart: not found.' });
    expect(session.recent).toEqual(['heart']);
    session.undo();
    expect(names()).toEqual(['my cyst']);
    session.redo();
    expect(names()).toEqual(['my cyst', 'heart']);
  });

  it('shows partial masks while they come, and the result in their place', async () => {
    const shown: (readonly number[] | undefined)[] = [];
    session.addEventListener('change', () => shown.push(session.drawn[0]?.planes.get(1)));
    server.lines(
      'POST infer/text_prompt',
      { event: 'progress', fraction: 0.5, message: 'plane 1', seconds_left: 2 },
      { event: 'mask', target: 'lungs', plane: 1, runs: [0, 2] },
      { event: 'result', params: {}, segments: [segment('lungs', 1, [0, 3])] },
    );
    await session.run('lungs');
    expect(shown).toContainEqual([0, 2]);
    expect(session.drawn[0]?.planes.get(1)).toEqual([0, 3]);
    expect(session.work).toBeNull();
  });

  it('keeps what was there when the server refuses or breaks off, and says why', async () => {
    session.draw(session.begin('cyst'), 2, [0, 1], 'brush');
    const before = session.findings;
    server.lines('POST infer/text_prompt', { event: 'error', status: 422, detail: 'No such option.' });
    await session.run('lungs');
    expect(session.error).toBe('No such option.');
    server.lines('POST infer/text_prompt', { event: 'mask', target: 'lungs', plane: 1, runs: [0, 2] });
    await session.run('lungs');
    expect(session.down).not.toBeNull();
    expect(session.findings).toBe(before);
    expect(session.drawn).toBe(before);
  });

  it('sends the active finding alone with a click, and changes it alone', async () => {
    session.draw(session.begin('heart'), 1, [0, 1], 'brush');
    session.draw(session.begin('my cyst'), 2, [3, 4], 'brush');
    server.lines('POST infer/refine', { event: 'result', params: {}, segments: [segment('my cyst', 2, [3, 6])] });
    await session.refine({ foreground: [{ plane: 2, x: 3, y: 1 }] });
    expect(server.last('POST infer/refine')?.body).toMatchObject({
      label: 'my cyst',
      clicks: { foreground: [{ plane: 2, x: 3, y: 1 }] },
      segments: [segment('my cyst', 2, [3, 4])],
    });
    expect(session.findings.map((each) => [...each.planes])).toEqual([[[1, [0, 1]]], [[2, [3, 6]]]]);
  });

  it('answers clicks that come quickly one after the other', async () => {
    session.begin('cyst');
    let length = 0;
    server.answers.set('POST infer/refine', () => {
      length += 1;
      const result = { event: 'result', params: {}, segments: [segment('cyst', 2, [0, length])] };
      return new Response(JSON.stringify(result), { headers: { 'Content-Type': 'application/x-ndjson' } });
    });
    await Promise.all([1, 2, 3].map((x) => session.refine({ foreground: [{ plane: 2, x, y: 0 }] })));
    const sent = server.asked.filter((each) => each.path === 'infer/refine').map((each) => each.body?.['segments']);
    expect(sent.slice(1)).toEqual([[segment('cyst', 2, [0, 1])], [segment('cyst', 2, [0, 2])]]);
  });

  it('brings a draft back, which goes before the saved label', async () => {
    server.json('GET viewer/api/drafts/ct%201', { segments: [segment('draft', 3, [1, 2])], base: 'v1', revision: 4 });
    server.json('GET viewer/api/labels/ct%201', { segments: [segment('label', 3, [1, 2])], version: 'v2', by: 'Ann' });
    const again = new Session(session.api, sessionStorage);
    const revealed: unknown[] = [];
    again.addEventListener('reveal', (event) => revealed.push((event as CustomEvent).detail));
    await again.show({ study: 's', series: 't', instance: 'a', frame: 1 });
    expect(again.findings.map((each) => each.name)).toEqual(['draft']);
    expect(again.base).toBe('v1');
    expect(revealed).toEqual([3]);
    again.draw(again.begin('x'), 0, [0, 1], 'brush');
    await again.flush();
    expect(server.last('PUT viewer/api/drafts/ct%201')?.body).toMatchObject({ base: 'v1', revision: 4 });
  });

  it('shows the mask of a model that waits, until somebody has drawn or saved', async () => {
    const waits = { ...segment('lungs', 3, [1, 2]), source: 'network', edited: false };
    server.json('GET viewer/api/proposals/ct%201', { segments: [waits], by: 'network version 2' });
    const again = new Session(session.api, sessionStorage);
    await again.show({ study: 's', series: 't', instance: 'a', frame: 1 });
    expect(again.findings).toMatchObject([{ name: 'lungs', source: 'network', edited: false }]);
    expect(again.note).toContain('network version 2');
    expect(again.unsaved).toBe(false);
    server.json('PUT viewer/api/labels/ct%201', { segments: [], version: 'v1' });
    await again.save();
    expect(server.last('PUT viewer/api/labels/ct%201')?.body).toMatchObject({ segments: [waits], base: null });
    server.json('GET viewer/api/drafts/ct%201', { segments: [segment('draft', 3, [1, 2])], base: null, revision: 4 });
    const third = new Session(session.api, sessionStorage);
    await third.show({ study: 's', series: 't', instance: 'a', frame: 1 });
    expect(third.findings.map((each) => each.name)).toEqual(['draft']);
  });

  it('opens an image whose waiting mask cannot be read', async () => {
    server.json('GET viewer/api/proposals/ct%201', { detail: 'The mask does not fit on the image.' }, 400);
    const again = new Session(session.api, sessionStorage);
    await again.show({ study: 's', series: 't', instance: 'a', frame: 1 });
    expect(again.image?.image).toBe('ct 1');
    expect(again.error).toContain('does not fit');
  });

  it('says why a label was rejected', async () => {
    const review = { verdict: 'rejected', reason: 'too large', by: 'Ann' };
    server.json('GET viewer/api/labels/ct%201', { segments: [segment('label', 3, [1, 2])], version: 'v2', review });
    const again = new Session(session.api, sessionStorage);
    await again.show({ study: 's', series: 't', instance: 'a', frame: 1 });
    expect(again.note).toContain('too large');
  });

  it.each([
    ['2026-01-01T09:00:00Z', 'label'],
    ['2026-01-01T11:00:00Z', 'draft'],
  ])('takes the draft of another browser only if it is newer than the label: %s', async (savedAt, expected) => {
    const draft = { segments: [segment('draft', 3, [1, 2])], base: null, revision: 4, own: false, saved_at: savedAt };
    server.json('GET viewer/api/drafts/ct%201', draft);
    const label = { segments: [segment('label', 3, [1, 2])], version: 'v2', at: '2026-01-01T10:00:00+00:00' };
    server.json('GET viewer/api/labels/ct%201', label);
    const again = new Session(session.api, sessionStorage);
    await again.show({ study: 's', series: 't', instance: 'a', frame: 1 });
    expect(again.findings.map((each) => each.name)).toEqual([expected]);
    // its revision is that of another draft
    again.draw(again.begin('x'), 0, [0, 1], 'brush');
    await again.flush();
    expect(server.last('PUT viewer/api/drafts/ct%201')?.body).toMatchObject({ revision: null });
  });

  it('shows both labels of a conflict, and saves the one that is chosen', async () => {
    session.draw(session.begin('mine'), 2, [0, 1], 'brush');
    const theirs = { segments: [segment('theirs', 2, [5, 2])], by: 'Ann', at: '2026-01-01T10:00:00Z', version: 'v9' };
    server.json('PUT viewer/api/labels/ct%201', { detail: 'Ann saved.', theirs }, 409);
    await session.save();
    expect(session.theirs?.findings.map((each) => each.name)).toEqual(['theirs']);
    expect(names()).toEqual(['mine']);
    server.json('PUT viewer/api/labels/ct%201', { segments: [], version: 'v10' });
    await session.settle('mine');
    expect(server.last('PUT viewer/api/labels/ct%201')?.body).toMatchObject({ base: 'v9', as_new: false });
    expect(session.theirs).toBeNull();
    expect(session.unsaved).toBe(false);
  });

  it('goes on with the label of the other, which can be taken back', async () => {
    session.draw(session.begin('mine'), 2, [0, 1], 'brush');
    const theirs = { segments: [segment('theirs', 2, [5, 2])], version: 'v9' };
    server.json('PUT viewer/api/labels/ct%201', { detail: 'Ann saved.', theirs }, 409);
    await session.save();
    await session.settle('theirs');
    expect(names()).toEqual(['theirs']);
    expect(session.base).toBe('v9');
    session.undo();
    expect(names()).toEqual(['mine']);
  });

  it('asks before it saves an empty label', async () => {
    server.json('PUT viewer/api/labels/ct%201', { segments: [], version: 'v1' });
    await session.save();
    expect(server.last('PUT viewer/api/labels/ct%201')).toBeUndefined();
    expect(session.asksEmpty).toEqual({ asNew: false });
    await session.save(false, true);
    expect(server.last('PUT viewer/api/labels/ct%201')?.body).toMatchObject({ segments: [] });
    expect(session.asksEmpty).toBeNull();
  });

  it('has what changes measured, and nothing twice', async () => {
    const asked = (): string[][] =>
      server.asked
        .filter((each) => each.path === 'viewer/api/measurements/ct%201')
        .map((each) => (each.body?.['segments'] as { name: string }[]).map(({ name }) => name));
    server.answers.set('POST viewer/api/measurements/ct%201', ({ body }) => {
      const segments = body?.['segments'] as { name: string; planes: { runs: number[] }[] }[];
      const measurements = segments.map(({ name, planes }) => ({ name, n_voxels: planes[0]?.runs[1] }));
      return Response.json({ measurements });
    });
    const measured = (): (number | undefined)[] =>
      session.findings.map((each) => session.measurementsOf(each)?.n_voxels);
    const soon = () => new Promise((done) => setTimeout(done, 400));
    session.draw(session.begin('a'), 2, [0, 3], 'brush');
    session.draw(session.begin('b'), 2, [4, 5], 'brush');
    session.begin('nothing');
    await soon();
    expect(measured()).toEqual([3, 5, undefined]);
    const [first] = session.findings;
    if (first) {
      session.draw(first, 2, [0, 2], 'eraser');
    }
    await soon();
    expect(measured()).toEqual([2, 5, undefined]);
    session.undo();
    await soon();
    expect(measured()).toEqual([3, 5, undefined]);
    expect(asked()).toEqual([['a', 'b'], ['a']]);
    server.json('POST viewer/api/measurements/ct%201', { detail: 'Broken.' }, 500);
    session.begin('c');
    session.draw(session.findings[3] ?? session.begin(), 1, [0, 1], 'brush');
    await soon();
    expect(session.unmeasured).toBe('Broken.');
    expect(session.error).toBeNull();
  });

  it('runs the network that is served, says so, and offers one that is trained meanwhile', async () => {
    const version = (number: number, status: string) => ({
      ...{ name: 'network', version: number, status, reason: 'Too few images.', labels: { lungs: 4 } },
      ...{ modality: 'CT', metrics: { verdict: { child: 0.8, n: 12 } } },
    });
    server.json('GET info/', { models: {}, strategies: {} });
    server.json('GET viewer/api/state', { training: 'network', last: null });
    server.json('GET networks/', {});
    await session.start();
    expect(session.hasNetwork).toBe(false);
    server.json('GET viewer/api/state', { training: null, last: { round: 1, state: 'unvalidated', network: null } });
    server.json('GET networks/', { network: { current: null, networks: [version(1, 'unvalidated')] } });
    await session.refreshState();
    expect(session.hasNetwork).toBe(true);
    expect(session.note).toContain('network version 1');
    server.lines('POST infer/network', {
      event: 'result',
      params: { network: { name: 'network', version: 1 }, targets: [{ name: 'lungs', uncertainty_score: 0.3 }] },
      segments: [segment('lungs', 1, [0, 3])],
    });
    session.model = 'network';
    await session.run('a text that is not meant');
    expect(server.last('POST infer/network')?.body).toEqual({ unvalidated: true });
    expect(session.findings[0]).toMatchObject({ source: 'network', evidence: { network: 'network version 1' } });
    expect(session.findings[0]?.evidence?.uncertaintyScore).toBe(0.3);
    const networks = [version(1, 'unvalidated'), version(2, 'published'), version(3, 'refused')];
    server.json('GET networks/', { network: { current: 2, networks } });
    server.json('GET viewer/api/state', { last: { round: 2, state: 'published', network: 'network version 2' } });
    await session.refreshState();
    expect(session.chosenNetwork?.version).toBe(2);
    await session.run('');
    expect(server.last('POST infer/network')?.body).toEqual({});
    session.stop();
  });

  it('stores measurements in the PACS where that is chosen, and says where they are not stored', async () => {
    const open = async (reports: string | null, series: string): Promise<void> => {
      server.json('GET viewer/api/image', { ...IMAGE, reports });
      await session.show({ study: 's', series, instance: `${series}-1`, frame: 1 });
      session.draw(session.begin(), 2, [0, 3], 'brush');
    };
    const stored = (): number => server.asked.filter((each) => each.path.endsWith('/report')).length;
    server.json('PUT viewer/api/labels/ct%201', { segments: [], version: 'v1' });
    session.withReport = true;
    await open(null, 'folder');
    await session.save();
    expect(stored()).toBe(0);
    await open('offered', 'pacs');
    server.json('POST viewer/api/labels/ct%201/report', {});
    await session.save();
    expect(stored()).toBe(1);
    expect(session.note).toContain('PACS');
    server.json('POST viewer/api/labels/ct%201/report', { detail: 'The PACS is full.' }, 502);
    await session.save();
    expect(session.error).toContain('The PACS is full.');
    expect(session.base).toBe('v1');
  });

  it('refuses two findings of one name', () => {
    const first = session.begin('a');
    session.begin('b');
    session.rename(first.id, 'b');
    expect(names()).toEqual(['a', 'b']);
    expect(session.error).toContain('b');
    session.rename(first.id, ' tumour ');
    expect(names()).toEqual(['tumour', 'b']);
  });

  it('refuses masks that do not fit on the image', async () => {
    server.lines('POST infer/text_prompt', { event: 'result', params: {}, segments: [segment('lungs', 1, [0, 21])] });
    await session.run('lungs');
    expect(session.findings).toEqual([]);
    expect(session.error).toContain('lungs');
  });
});

describe('keys', () => {
  it('are one for each thing', () => {
    const keys = SHORTCUTS.map((each) => each.keys);
    expect(new Set(keys).size).toBe(keys.length);
  });

  it('work outside of text fields, and with Ctrl in them where they are to', () => {
    const session = new Session(new Api('/', new Server().fetch), sessionStorage);
    let saved = 0;
    session.save = () => {
      saved += 1;
      return Promise.resolve();
    };
    const shortcuts = new Shortcuts(session);
    shortcuts.start();
    const field = document.createElement('input');
    document.body.append(field);
    const press = (target: Element, key: string, more: KeyboardEventInit = {}): void => {
      target.dispatchEvent(new KeyboardEvent('keydown', { key, bubbles: true, composed: true, cancelable: true, ...more }));
    };
    press(field, 'b');
    expect(session.tool).toBe('navigate');
    press(document.body, 'b');
    expect(session.tool).toBe('brush');
    press(document.body, 'Escape');
    expect(session.tool).toBe('navigate');
    press(field, 's', { ctrlKey: true });
    expect(saved).toBe(1);
    shortcuts.stop();
    press(document.body, 'b');
    expect(session.tool).toBe('navigate');
  });

  it('have one name on all keyboards', () => {
    expect(keysOf(new KeyboardEvent('keydown', { key: 'Z', metaKey: true, shiftKey: true }))).toBe('Ctrl+Shift+z');
    expect(keysOf(new KeyboardEvent('keydown', { key: 'Backspace' }))).toBe('Delete');
  });
});
