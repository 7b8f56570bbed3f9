import { ITensor } from './registry';

/** What an endpoint takes and gives: `GET aios/endpoints/NAME`. */
export interface IEndpointForm {
  name: string;
  model: string;
  /** Those that answer; the first gets most requests. */
  versions: string[];
  inputs: ITensor[];
  outputs: ITensor[];
  /** One sample by input, the samples as first dimension. */
  example: Record<string, unknown> | null;
  /** Why there is no example. */
  note: string;
}

/** What an endpoint has answered. */
export interface IEndpointAnswer {
  outputs: unknown;
  version: string;
  milliseconds: number;
}

/** How an input is filled in: one value, or JSON. */
export type FieldKind = 'number' | 'whole' | 'text' | 'yes' | 'json';

/** Why what stands in a field cannot be sent. */
export type Problem = 'empty' | 'number' | 'whole' | 'json';

/** What stands in the fields by input: text, also of a box (`true`, `false`, or empty for neither). */
export type Values = Record<string, string>;

/** Digits of more are not told apart by a number of JavaScript's: they are sent as they were typed. */
const WHOLE = /^[+-]?\d+$/;
const NUMBER = /^[+-]?(\d+\.?\d*|\.\d+)(e[+-]?\d+)?$/i;

/** How many samples are shown beside each other, and how many values of each. */
const SAMPLES = 8;
const SHOWN = 20;
/** Of more scores these are shown, the largest first. */
const LARGEST = 10;

/** How an input is filled in: one that has one value in each sample has a field for that. */
export function fieldKind({ datatype, shape }: ITensor): FieldKind {
  if (!shape.every((size, at) => size === 1 || (size === -1 && at === 0))) {
    return 'json';
  }
  if (datatype === 'BYTES') {
    return 'text';
  }
  if (datatype === 'BOOL') {
    return 'yes';
  }
  return datatype.startsWith('FP') ? 'number' : 'whole';
}

/** The fields as they are before anybody fills them in: a box has a state. */
export function emptyValues(inputs: readonly ITensor[]): Values {
  return Object.fromEntries(
    inputs.map(input => [
      input.name,
      fieldKind(input) === 'yes' && !input.missing ? 'false' : ''
    ])
  );
}

/** The fields with the example of the version in them. */
export function exampleValues(form: IEndpointForm): Values {
  const values = emptyValues(form.inputs);
  for (const input of form.inputs) {
    const given = form.example?.[input.name];
    if (given !== undefined) {
      const json = fieldKind(input) === 'json';
      values[input.name] = json ? written(oneSample(input, given)) : oneValue(given);
    }
  }
  return values;
}

/** The body of a request, as JSON, or what is wrong with the fields. */
export function bodyOf(
  inputs: readonly ITensor[],
  values: Values
): { body: string } | { problems: Record<string, Problem> } {
  const problems: Record<string, Problem> = {};
  const parts = inputs.map(input => {
    const found = jsonOf(input, values[input.name] ?? '');
    if ('problem' in found) {
      problems[input.name] = found.problem;
      return '';
    }
    return `${JSON.stringify(input.name)}: ${found.json}`;
  });
  return Object.keys(problems).length > 0
    ? { problems }
    : { body: `{"inputs": {${parts.join(', ')}}}` };
}

type Json = { json: string } | { problem: Problem };

function jsonOf(input: ITensor, text: string): Json {
  const kind = fieldKind(input);
  if (kind === 'json') {
    return samplesOf(input, text);
  }
  const found = scalarOf(kind, text, !!input.missing);
  if ('problem' in found) {
    return found;
  }
  const rank = input.shape.length;
  return { json: '['.repeat(rank) + found.json + ']'.repeat(rank) };
}

function scalarOf(kind: FieldKind, text: string, missing: boolean): Json {
  const trimmed = text.trim();
  if (trimmed === '' && missing) {
    return { json: 'null' };
  }
  if (kind === 'text') {
    return { json: JSON.stringify(text) };
  }
  if (trimmed === '') {
    return { problem: 'empty' };
  }
  if (kind === 'yes') {
    return { json: trimmed };
  }
  if (kind === 'whole') {
    return WHOLE.test(trimmed) ? { json: `${BigInt(trimmed)}` } : { problem: 'whole' };
  }
  const value = Number(trimmed);
  return NUMBER.test(trimmed) && Number.isFinite(value)
    ? { json: `${value}` }
    : { problem: 'number' };
}

/** Samples as they were typed; one that stands by itself becomes a list of one. */
function samplesOf(input: ITensor, text: string): Json {
  if (text.trim() === '') {
    return { problem: 'empty' };
  }
  let value: unknown;
  try {
    value = JSON.parse(text);
  } catch {
    return { problem: 'json' };
  }
  const alone = mayStandAlone(input) && depth(value) === input.shape.length - 1;
  return { json: alone ? `[${text.trim()}]` : text.trim() };
}

function mayStandAlone({ shape }: ITensor): boolean {
  return shape[0] === -1 || shape[0] === 1;
}

function oneSample(input: ITensor, given: unknown): unknown {
  return mayStandAlone(input) && Array.isArray(given) && given.length === 1
    ? (given as unknown[])[0]
    : given;
}

function oneValue(given: unknown): string {
  let value = given;
  while (Array.isArray(value)) {
    value = (value as unknown[])[0];
  }
  if (typeof value === 'string') {
    return value;
  }
  return value === null ? '' : JSON.stringify(value);
}

/** How many lists are in each other. */
function depth(value: unknown): number {
  return Array.isArray(value) ? 1 + depth((value as unknown[])[0]) : 0;
}

/** As JSON with a line for each innermost list, or for each row of pixels, which are short lists. */
export function written(value: unknown, indent = ''): string {
  const within = `${indent} `;
  const lines = (parts: string[], begin: string, end: string) =>
    `${begin}\n${within}${parts.join(`,\n${within}`)}\n${indent}${end}`;
  if (Array.isArray(value) && value.some(Array.isArray) && !(indent && isRow(value))) {
    const parts = value.map(part => written(part, within));
    return lines(parts, '[', ']');
  }
  if (typeof value === 'object' && value !== null && !Array.isArray(value)) {
    const parts = Object.entries(value).map(
      ([name, part]) => `${JSON.stringify(name)}: ${written(part, within)}`
    );
    return lines(parts, '{', '}');
  }
  return JSON.stringify(value);
}

function isRow(value: readonly unknown[]): boolean {
  return value.every(one => Array.isArray(one) && one.length <= 4 && depth(one) === 1);
}

/** A value of an answer, by what it is called; `largest` are the samples in which it is so. */
export interface IAnswerRow {
  name: string;
  values: unknown[];
  largest: boolean[];
}

/** An answer as a table with a column for each sample. */
export interface IAnswerTable {
  rows: IAnswerRow[];
  samples: number;
  /** How many rows are left out, all of them smaller. */
  left: number;
}

/** The answer as a table; null where it is none that anybody could read. */
export function answerTable(
  outputs: unknown,
  tensors: readonly ITensor[]
): IAnswerTable | null {
  const named = tensors.length === 1 ? { [tensors[0]?.name ?? '']: outputs } : outputs;
  const rows: IAnswerRow[] = [];
  let samples = 0;
  for (const { name } of tensors) {
    const given = (named as Record<string, unknown> | null)?.[name];
    if (!Array.isArray(given) || given.length === 0 || given.length > SAMPLES) {
      return null;
    }
    const found = columnsOf(name, given);
    if (!found || (samples > 0 && samples !== given.length)) {
      return null;
    }
    samples = given.length;
    rows.push(...found);
  }
  return samples > 0 ? shown(rows, samples) : null;
}

/** The rows of one output: one value of each sample, or a list of as many in each. */
function columnsOf(name: string, given: readonly unknown[]): IAnswerRow[] | null {
  if (!given.some(Array.isArray)) {
    return [{ name, values: [...given], largest: given.map(() => false) }];
  }
  const lists = given as unknown[][];
  const width = lists[0]?.length ?? 0;
  if (
    !lists.every(one => Array.isArray(one) && one.length === width && depth(one) === 1)
  ) {
    return null;
  }
  const most = lists.map(one =>
    width > 1 && one.every(value => typeof value === 'number')
      ? one.indexOf(one.reduce((a, b) => Math.max(a, b), -Infinity))
      : -1
  );
  return Array.from({ length: width }, (_, at) => ({
    name: width > 1 ? `${name}[${at}]` : name,
    values: lists.map(one => one[at]),
    largest: most.map(index => index === at)
  }));
}

function shown(rows: IAnswerRow[], samples: number): IAnswerTable | null {
  if (rows.length <= SHOWN) {
    return { rows, samples, left: 0 };
  }
  if (samples > 1 || !rows.every(row => typeof row.values[0] === 'number')) {
    return null;
  }
  const sorted = [...rows].sort((a, b) => Number(b.values[0]) - Number(a.values[0]));
  return { rows: sorted.slice(0, LARGEST), samples, left: rows.length - LARGEST };
}
