import { describe, expect, it } from 'vitest';
import { Api, lines, ServerError, UnreachableError, type Line } from '../src/api';

function stream(...parts: string[]): ReadableStream<Uint8Array> {
  const bytes = new TextEncoder();
  return new ReadableStream({
    start(controller) {
      parts.forEach((part) => controller.enqueue(bytes.encode(part)));
      controller.close();
    },
  });
}

async function all(given: AsyncIterable<Line>): Promise<Line[]> {
  const found: Line[] = [];
  for await (const line of given) {
    found.push(line);
  }
  return found;
}

describe('lines', () => {
  it('are read wherever the network cuts them, within a character too', async () => {
    const text = '{"event":"progress","message":"é 1"}\n\n{"event":"mask","target":"a","plane":3,"runs":[1,2]}\n';
    const bytes = new TextEncoder().encode(text);
    for (let cut = 0; cut <= bytes.length; cut++) {
      const body = new ReadableStream<Uint8Array>({
        start(controller) {
          controller.enqueue(bytes.slice(0, cut));
          controller.enqueue(bytes.slice(cut));
          controller.close();
        },
      });
      expect(await all(lines(body))).toEqual([
        { event: 'progress', message: 'é 1' },
        { event: 'mask', target: 'a', plane: 3, runs: [1, 2] },
      ]);
    }
  });

  it('end without a line break', async () => {
    expect(await all(lines(stream('{"event":"error","status":422,', '"detail":"x"}')))).toHaveLength(1);
  });
});

describe('the server', () => {
  it('is named where it does not answer', async () => {
    const api = new Api('http://127.0.0.1:1/', () => Promise.reject(new TypeError('failed')));
    await expect(api.info()).rejects.toThrow(UnreachableError);
    await expect(api.info()).rejects.toThrow('http://127.0.0.1:1');
    expect(await api.isUp()).toBe(false);
  });

  it('says in a sentence what it refuses', async () => {
    const told = { detail: 'Somebody else saved.', theirs: { version: 'b' } };
    const api = new Api('/', () => Promise.resolve(new Response(JSON.stringify(told), { status: 409 })));
    const error = await api.save('x', { segments: [], base: null, as_new: false }).catch((each: unknown) => each);
    expect(error).toBeInstanceOf(ServerError);
    expect(error).toMatchObject({ status: 409, message: told.detail, body: told });
  });

  it('may answer a page of a proxy in place of a sentence', async () => {
    const api = new Api('/', () => Promise.resolve(new Response('<h1>Bad gateway</h1>', { status: 502 })));
    await expect(api.info()).rejects.toThrow('502');
  });

  it('has no draft where it answers 204', async () => {
    const api = new Api('/', () => Promise.resolve(new Response(null, { status: 204 })));
    expect(await api.draft('x')).toBeNull();
  });
});
