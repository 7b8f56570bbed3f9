import * as React from 'react';

import { EndpointRow } from '../src/components/endpoints';
import { Answer } from '../src/details/answer';
import { Signatures } from '../src/details/model';
import { TryIt, TryModel } from '../src/details/try';
import { TryForm } from '../src/details/tryform';
import {
  answerTable,
  bodyOf,
  emptyValues,
  exampleValues,
  fieldKind,
  IEndpointForm,
  Values,
  written
} from '../src/endpoints';
import { IApi } from '../src/api';
import { IPicture, middle, pictureOf, pictureText } from '../src/picture';
import { ITensor } from '../src/registry';
import { IRun } from '../src/schema';
import { drawn } from './drawn';
import { run, snapshot } from './rows';

// It needs a browser, and only a button that nobody presses here uses it.
jest.mock('@jupyterlab/apputils', () => ({}));

const BAD = '<img src=x onerror=alert(1)>';

function tensor(
  name: string,
  datatype: string,
  shape: number[],
  missing = false
): ITensor {
  return { name, datatype, shape, ...(missing ? { missing } : {}) };
}

const AGE = tensor('age', 'FP64', [-1], true);
const COUNT = tensor('count', 'INT64', [-1, 1]);
const MEMBER = tensor('member', 'BOOL', [-1]);
const CITY = tensor('city', 'BYTES', [-1], true);
const IMAGE = tensor('x', 'FP32', [-1, 2, 2]);

function form(inputs: ITensor[], rest: Partial<IEndpointForm> = {}): IEndpointForm {
  return {
    name: 'e',
    model: 'm',
    versions: ['1'],
    inputs,
    outputs: [tensor('y', 'FP32', [-1, 2])],
    example: null,
    note: '',
    ...rest
  };
}

/** The inputs of the body, or the problems. */
function sent(inputs: ITensor[], values: Values): unknown {
  const found = bodyOf(inputs, values);
  return 'problems' in found
    ? found.problems
    : (JSON.parse(found.body) as { inputs: unknown }).inputs;
}

describe('a field', () => {
  it('is for one value where each sample has one, else for JSON', () => {
    expect([AGE, COUNT, MEMBER, CITY, IMAGE].map(fieldKind)).toEqual([
      'number',
      'whole',
      'yes',
      'text',
      'json'
    ]);
    expect(fieldKind(tensor('s', 'FP32', []))).toBe('number');
    expect(fieldKind(tensor('s', 'FP32', [1, 1]))).toBe('number');
    expect(fieldKind(tensor('s', 'FP32', [-1, 4]))).toBe('json');
    expect(fieldKind(tensor('s', 'FP32', [-1, -1]))).toBe('json');
    expect(fieldKind(tensor('s', 'FP32', [3]))).toBe('json');
  });
});

describe('a body', () => {
  const inputs = [AGE, COUNT, MEMBER, CITY];

  it('has each value in as many lists as the input has dimensions', () => {
    const values = { age: ' 3.50 ', count: '-7', member: 'true', city: ' Ulm "a\n' };
    expect(sent(inputs, values)).toEqual({
      age: [3.5],
      count: [[-7]],
      member: [true],
      city: [' Ulm "a\n']
    });
    expect(sent([tensor('s', 'FP32', [])], { s: '+.5e1' })).toEqual({ s: 5 });
  });

  it('has null for what may be missing, and false for a box that nobody ticked', () => {
    const values = { ...emptyValues(inputs), count: '0' };
    expect(sent(inputs, values)).toEqual({
      age: [null],
      count: [[0]],
      member: [false],
      city: [null]
    });
    const perhaps = tensor('b', 'BOOL', [-1], true);
    expect(sent([perhaps], emptyValues([perhaps]))).toEqual({ b: [null] });
  });

  it('keeps digits that no number of JavaScript has', () => {
    const found = bodyOf([COUNT], { count: '009007199254740993' });
    expect(found).toEqual({ body: '{"inputs": {"count": [[9007199254740993]]}}' });
    const ids = tensor('ids', 'INT64', [-1, 2]);
    const list = bodyOf([ids], { ids: ' [9007199254740993, 1] ' });
    expect(list).toEqual({ body: '{"inputs": {"ids": [[9007199254740993, 1]]}}' });
  });

  it('takes one sample as it takes a list of them', () => {
    const one = '[[1, 2], [3, 4]]';
    const both = { x: [JSON.parse(one) as unknown] };
    expect(sent([IMAGE], { x: one })).toEqual(both);
    expect(sent([IMAGE], { x: `[${one}]` })).toEqual(both);
    // What it is not is for the endpoint to say.
    expect(sent([IMAGE], { x: '7' })).toEqual({ x: 7 });
    const fixed = tensor('x', 'FP32', [2, 2]);
    expect(sent([fixed], { x: '[1, 2]' })).toEqual({ x: [1, 2] });
  });

  it.each([
    ['1,5', 'number'],
    ['Infinity', 'number'],
    ['1e999', 'number'],
    ['0x10', 'number'],
    ['one', 'number']
  ])('is not made of %s for a number', (text, problem) => {
    expect(sent([AGE], { age: text })).toEqual({ age: problem });
  });

  it('names each field that makes no sense', () => {
    const values = { count: '1.5', member: 'true', city: '', x: '[1, 2' };
    expect(sent([COUNT, MEMBER, CITY, IMAGE], values)).toEqual({
      count: 'whole',
      x: 'json'
    });
    expect(sent([COUNT, IMAGE], {})).toEqual({ count: 'empty', x: 'empty' });
  });
});

describe('an example', () => {
  it('fills the fields, and is sent as what it is', () => {
    const inputs = [AGE, COUNT, MEMBER, CITY, IMAGE];
    const given = {
      age: [null],
      count: [[4]],
      member: [true],
      city: [BAD],
      x: [
        [
          [1, 2],
          [3, 4]
        ]
      ]
    };
    const values = exampleValues(form(inputs, { example: given }));
    expect(values).toEqual({
      age: '',
      count: '4',
      member: 'true',
      city: BAD,
      x: '[\n [1,2],\n [3,4]\n]'
    });
    expect(sent(inputs, values)).toEqual(given);
  });

  it('of which a part is gone leaves that field as it was', () => {
    expect(exampleValues(form([MEMBER, IMAGE], { example: {} }))).toEqual({
      member: 'false',
      x: ''
    });
  });

  it('is written with a line for each innermost list, and pixels in rows', () => {
    expect(written([[[1, 2], [3]]])).toBe('[\n [[1,2],[3]]\n]');
    const rows = [[[1, 2, 3, 4, 5], [6]]];
    expect(written(rows)).toBe('[\n [\n  [1,2,3,4,5],\n  [6]\n ]\n]');
    expect(written('a')).toBe('"a"');
    expect(written({ a: [1, 2], 'b"': [[]] })).toBe('{\n "a": [1,2],\n "b\\"": [[]]\n}');
  });
});

describe('an answer', () => {
  const one = [tensor('y', 'FP32', [-1, 3])];

  it('is a table with a row for each value, and marks the largest', () => {
    const table = answerTable([[0.1, 0.7, 0.2]], one);
    expect(table?.rows.map(row => [row.name, row.values[0], row.largest[0]])).toEqual([
      ['y[0]', 0.1, false],
      ['y[1]', 0.7, true],
      ['y[2]', 0.2, false]
    ]);
    expect(answerTable([[1], [2]], [tensor('y', 'FP32', [-1, 1])])?.rows).toEqual([
      { name: 'y', values: [1, 2], largest: [false, false] }
    ]);
  });

  it('has the values of several outputs', () => {
    const outputs = [tensor('label', 'BYTES', [-1]), tensor('score', 'FP32', [-1, 2])];
    const table = answerTable(
      {
        label: ['a', 'b'],
        score: [
          [1, 2],
          [4, 3]
        ]
      },
      outputs
    );
    expect(table?.samples).toBe(2);
    expect(table?.rows.map(row => row.name)).toEqual(['label', 'score[0]', 'score[1]']);
    expect(table?.rows[1]?.largest).toEqual([false, true]);
  });

  it('shows of many scores the largest', () => {
    const scores = Array.from({ length: 1000 }, (_, at) => (at * 7) % 1000);
    const table = answerTable([scores], one);
    expect(table?.rows[0]?.values).toEqual([999]);
    expect([table?.rows.length, table?.left]).toEqual([10, 990]);
  });

  it.each([
    ['no lists', 5],
    ['nothing', null],
    ['no samples', []],
    ['deeper lists', [[[1]]]],
    ['ragged lists', [[1], [1, 2]]],
    ['lists beside values', [1, [2]]],
    ['many samples', Array.from({ length: 9 }, () => [1])],
    ['many values of two samples', [1, 2].map(() => Array.from({ length: 21 }, () => 0))],
    ['many texts', [Array.from({ length: 21 }, () => 'a')]]
  ])('of %s is shown as JSON', (_, outputs) => {
    expect(answerTable(outputs, one)).toBeNull();
    const given = { outputs, version: '1', milliseconds: 1 };
    const html = drawn(<Answer form={form([])} answer={given} />);
    expect(html).toContain('<details open="">');
    expect(html).not.toContain('<table');
  });

  it('that is long is cut', () => {
    const outputs = [['x'.repeat(30_000)]];
    const html = drawn(
      <Answer form={form([])} answer={{ outputs, version: '1', milliseconds: 1 }} />
    );
    expect(html).toMatch(/x…<\/pre>/);
  });
});

const NEVER = { endpoint: () => new Promise(() => undefined) } as unknown as IApi;

function endpoint(id: string, rest: Partial<IRun> = {}): IRun {
  const detail = { url: 'http://127.0.0.1:1', model: 'digits', version: '3' };
  return run(id, { kind: 'endpoint', name: `name of ${id}`, detail, ...rest });
}

describe('a form', () => {
  const inputs = [AGE, COUNT, MEMBER, CITY, IMAGE];
  const html = (of: IEndpointForm, busy = false) =>
    drawn(<TryForm ask={() => undefined} busy={busy} form={of} />);

  it('has a field with a label and a hint for each input', () => {
    const found = html(form(inputs));
    for (const { name } of inputs) {
      expect(found).toMatch(
        new RegExp(`<label for="([^"]+)">${name}</label>.*?id="\\1"`)
      );
    }
    expect(found).toContain('inputMode="decimal"');
    expect(found).toContain('inputMode="numeric"');
    expect(found).toContain('type="checkbox"');
    expect(found).toContain('FP32 ? × 2 × 2, as JSON: one sample, or a list of several');
    expect(found).toContain('number; empty is missing');
    expect(found.match(/aria-describedby/g)?.length).toBe(inputs.length);
  });

  it('can be filled with the example where there is one, and says why where not', () => {
    expect(html(form([AGE], { example: { age: [1] } }))).toContain(
      'Fill with the example'
    );
    const without = html(form([AGE], { note: `${BAD} has no input example.` }));
    expect(without).not.toContain('Fill with');
    expect(without).toContain('&lt;img');
  });

  it('has text for what others have named', () => {
    const hostile = tensor(BAD, BAD, [-1, 7]);
    const answer = { outputs: [[BAD, BAD]], version: BAD, milliseconds: 1 };
    const all = form([hostile], { outputs: [tensor(BAD, BAD, [-1, 2])] });
    const found = html(all) + drawn(<Answer answer={answer} form={all} />);
    expect(found).not.toContain('<img');
    expect(found.split('&lt;img').length).toBeGreaterThan(6);
  });
});

describe('who may try', () => {
  it('is the owner of an endpoint that answers', () => {
    const said = (rest: Partial<IRun>) =>
      drawn(<TryIt api={NEVER} run={endpoint('e', rest)} />);
    expect(said({})).toContain('Asking the endpoint what it takes…');
    expect(said({ user: 'bob' })).toContain('Only bob can try it from here');
    expect(said({ detail: {} })).toContain('as soon as it has started');
    expect(said({ state: 'stopped', ended: 2000 })).toContain('answers no more');
    const row = (rest: Partial<IRun>) => drawn(<EndpointRow run={endpoint('e', rest)} />);
    expect(row({})).toContain('aria-label="Try name of e"');
    expect(row({ user: 'bob' })).not.toContain('aria-label="Try');
    expect(row({ state: 'failed', ended: 2000 })).not.toContain('aria-label="Try');
  });

  it('chooses among the endpoints of theirs that serve a model', () => {
    const runs = {
      e1: endpoint('e1'),
      e2: endpoint('e2'),
      e3: endpoint('e3', { user: 'bob' }),
      e4: endpoint('e4', { state: 'stopped', ended: 2000 }),
      e5: endpoint('e5', { detail: { url: 'u', model: 'other' } })
    };
    const html = drawn(<TryModel api={NEVER} name="digits" />, snapshot({ runs }));
    expect([...html.matchAll(/<option value="(\w+)"/g)].map(one => one[1])).toEqual([
      'e1',
      'e2'
    ]);
    expect(
      drawn(<TryModel api={NEVER} name="other" />, snapshot({ runs }))
    ).not.toContain('<select');
    expect(drawn(<TryModel api={NEVER} name="none" />, snapshot({ runs }))).toContain(
      '%aios serve none'
    );
  });
});

describe('a picture', () => {
  const of = (datatype: string, ...shape: number[]) =>
    pictureOf(tensor('x', datatype, shape));

  it('is what an input of such a shape takes', () => {
    expect(of('FP32', -1, 1, 28, 20)).toEqual({
      order: 'CHW',
      height: 28,
      width: 20,
      channels: 1,
      most: 1
    });
    expect(of('UINT8', -1, 28, 20, 3)).toEqual({
      order: 'HWC',
      height: 28,
      width: 20,
      channels: 3,
      most: 255
    });
    expect(of('FP16', 1, 28, 20)?.order).toBe('HW');
    expect(of('INT64', -1, 3, 224, 224)?.most).toBe(255);
  });

  it.each([
    ['text', of('BYTES', -1, 28, 28)],
    ['yes and no', of('BOOL', -1, 28, 28)],
    ['bytes with a sign', of('INT8', -1, 28, 28)],
    ['sides of any size', of('FP32', -1, 3, -1, -1)],
    ['small sides', of('FP32', -1, 4, 7)],
    ['two colors', of('FP32', -1, 2, 28, 28)],
    ['a row', of('FP32', -1, 784)],
    ['several that are one', of('FP32', 2, 28, 28)],
    ['a film', of('FP32', -1, 9, 3, 28, 28)]
  ])('is none of %s', (_, found) => expect(found).toBeNull());

  it('is cut to the shape of the input at its longer sides', () => {
    const [wide, square] = [
      { width: 400, height: 100 },
      { width: 10, height: 10 }
    ];
    expect(middle(wide, square)).toEqual({ x: 150, y: 0, width: 100, height: 100 });
    expect(middle(square, wide)).toEqual({ x: 0, y: 3.75, width: 10, height: 2.5 });
  });

  const pixels = new Uint8ClampedArray([255, 0, 51, 255, 10, 20, 30, 255]);
  const two = { height: 1, width: 2 } as const;
  it.each<[string, IPicture, unknown]>([
    [
      'colors apart',
      { ...two, order: 'CHW', channels: 3, most: 255 },
      [[[255, 10]], [[0, 20]], [[51, 30]]]
    ],
    [
      'colors together',
      { ...two, order: 'HWC', channels: 3, most: 1 },
      [
        [
          [1, 0, 0.2],
          [0.0392, 0.0784, 0.1176]
        ]
      ]
    ],
    ['gray', { ...two, order: 'HW', channels: 1, most: 255 }, [[82, 18]]],
    ['gray apart', { ...two, order: 'CHW', channels: 1, most: 1 }, [[[0.3218, 0.0712]]]],
    ['gray together', { ...two, order: 'HWC', channels: 1, most: 255 }, [[[82], [18]]]]
  ])('is written with %s', (_, picture, expected) => {
    expect(JSON.parse(pictureText(pixels, picture))).toEqual(expected);
  });

  it('may be chosen where the input takes one, and it is said what is done to it', () => {
    const html = (shape: number[]) =>
      drawn(
        <TryForm
          ask={() => undefined}
          busy={false}
          form={form([tensor('x', 'FP32', shape)])}
        />
      );
    const found = html([-1, 3, 28, 20]);
    expect(found).toMatch(
      /<label for="([^"]+)">From a picture<\/label><input accept="image/
    );
    expect(found).toContain('scaled to 20 × 28, in color, 0 to 1;');
    expect(html([-1, 4])).not.toContain('type="file"');
  });
});

describe('who has signed a version', () => {
  it('is named, with what the signature is worth', () => {
    const signed = (standing: 'known' | 'unknown' | 'broken', name = 'bob') => ({
      name,
      role: 'user',
      standing,
      problem: standing === 'known' ? '' : 'because'
    });
    expect(drawn(<Signatures signed={[]} />)).toContain('nobody');
    const good = drawn(<Signatures signed={[signed('known')]} />);
    expect(good).toContain('bob');
    expect(good).not.toContain('Badge');
    expect(drawn(<Signatures signed={[signed('unknown')]} />)).toMatch(
      /title="because">bob <.*not known here/
    );
    expect(drawn(<Signatures signed={[signed('broken')]} />)).toMatch(
      /mod-error">does not hold/
    );
    expect(drawn(<Signatures signed={[signed('unknown', BAD)]} />)).not.toContain('<img');
  });
});
