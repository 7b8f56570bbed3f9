import { IClusterEvent, IDevice, IRun, ISnapshot } from './schema';

/** Seconds of a device's past that are kept. */
export const WINDOW = 120;
/** Points of a metric's course, beyond which every second one is dropped. */
const POINTS = 240;
/** Changes of one device within the window; samples come about once a second. */
const CHANGES = 2 * WINDOW;
/** Seconds after which a value that was not told again is drawn as a step and not as a slope. */
const STEP = 2;

/** One value over time, as charts take it. */
export interface ICourse {
  x: readonly number[];
  y: readonly (number | null)[];
}

/** What the server has seen before this page was loaded: `GET aios/history`. */
export interface IPast {
  devices: Record<string, ITrack>;
  runs: Record<string, Record<string, { x: number[]; y: number[] }>>;
}

/** A device's changes: times (epoch seconds), utilization and memory (percent). */
export interface ITrack {
  time: number[];
  utilization: (number | null)[];
  memory: (number | null)[];
}

/**
 * The last two minutes of each device and the course of each run's metrics.
 *
 * Pure bookkeeping over the events of the stream, which tell changes alone: a value holds until
 * the next one.
 */
export class History {
  /** Take an event in, after the model; `before` is the snapshot that it changed. */
  take(event: IClusterEvent, before: ISnapshot | null): void {
    if (event.snapshot) {
      this._forget(event.snapshot);
    }
    const told = event.snapshot ?? event.delta;
    for (const [id, row] of Object.entries(told?.devices ?? {})) {
      if (row) {
        this._device(id, row, event.time);
      } else {
        this._devices.delete(id);
      }
    }
    for (const [id, row] of Object.entries(told?.runs ?? {})) {
      if (row) {
        this._run(id, row, before?.runs[id], event.time);
      } else {
        this._runs.delete(id);
      }
    }
  }

  /** Put what the server remembers before what this page has seen. */
  seed(past: IPast): void {
    for (const [id, old] of Object.entries(past.devices)) {
      const seen = this._devices.get(id);
      const since = seen?.time[0] ?? Infinity;
      const earlier = old.time.filter(time => time < since).length;
      this._devices.set(id, {
        time: [...old.time.slice(0, earlier), ...(seen?.time ?? [])],
        utilization: [...old.utilization.slice(0, earlier), ...(seen?.utilization ?? [])],
        memory: [...old.memory.slice(0, earlier), ...(seen?.memory ?? [])]
      });
    }
    for (const [id, courses] of Object.entries(past.runs)) {
      const known = this._runs.get(id) ?? new Map<string, Course>();
      for (const [name, { x, y }] of Object.entries(courses)) {
        const course = new Course();
        x.forEach((time, index) => course.add(time, y[index] ?? NaN));
        const seen = known.get(name);
        const last = x[x.length - 1] ?? -Infinity;
        seen?.x.forEach((time, i) => time > last && course.add(time, seen.y[i] ?? NaN));
        known.set(name, course);
      }
      this._runs.set(id, known);
    }
  }

  /** A device's utilization and memory from `WINDOW` seconds ago until now, held between changes. */
  device(id: string, now: number): { utilization: ICourse; memory: ICourse } {
    const track = this._devices.get(id) ?? { time: [], utilization: [], memory: [] };
    return {
      utilization: held(track.time, track.utilization, now - WINDOW, now),
      memory: held(track.time, track.memory, now - WINDOW, now)
    };
  }

  /** The metrics of a run over the seconds since its start, in the order in which they came. */
  run(id: string): ReadonlyMap<string, ICourse> {
    return this._runs.get(id) ?? new Map<string, ICourse>();
  }

  private _device(id: string, row: IDevice, time: number): void {
    if (row.utilization === null && row.memory_used === null) {
      return;
    }
    let track = this._devices.get(id);
    if (!track) {
      track = { time: [], utilization: [], memory: [] };
      this._devices.set(id, track);
    }
    track.time.push(time);
    track.utilization.push(row.utilization);
    track.memory.push(
      row.memory_used === null || row.memory <= 0
        ? null
        : (100 * row.memory_used) / row.memory
    );
    if (track.time.length > 2 * CHANGES) {
      track.time.splice(0, CHANGES);
      track.utilization.splice(0, CHANGES);
      track.memory.splice(0, CHANGES);
    }
  }

  private _run(id: string, row: IRun, before: IRun | undefined, time: number): void {
    let courses = this._runs.get(id);
    for (const [name, value] of Object.entries(row.metrics)) {
      const course = courses?.get(name);
      // Progress alone may have changed; a metric may also have come to the same value again.
      if (course && before && same(before.metrics, row.metrics)) {
        return;
      }
      if (!courses) {
        courses = new Map();
        this._runs.set(id, courses);
      }
      if (course) {
        course.add(time - row.started, value);
      } else {
        const first = new Course();
        first.add(time - row.started, value);
        courses.set(name, first);
      }
    }
  }

  private _forget(snapshot: ISnapshot): void {
    for (const id of this._devices.keys()) {
      if (!(id in snapshot.devices)) {
        this._devices.delete(id);
      }
    }
    for (const id of this._runs.keys()) {
      if (!(id in snapshot.runs)) {
        this._runs.delete(id);
      }
    }
  }

  private _devices = new Map<string, ITrack>();
  private _runs = new Map<string, Map<string, Course>>();
}

/** A metric's course in bounded memory: when it is full, every second point is dropped. */
export class Course implements ICourse {
  readonly x: number[] = [];
  readonly y: number[] = [];

  add(x: number, y: number): void {
    if (this._seen++ % this._stride !== 0) {
      return;
    }
    this.x.push(x);
    this.y.push(y);
    if (this.x.length > POINTS) {
      for (const values of [this.x, this.y]) {
        const kept = values.filter((_, index) => index % 2 === 0);
        values.splice(0, values.length, ...kept);
      }
      this._stride *= 2;
    }
  }

  private _seen = 0;
  private _stride = 1;
}

/** Changes between two times as a line: each value goes on until the next one, the last to the end. */
export function held(
  times: readonly number[],
  values: readonly (number | null)[],
  from: number,
  to: number
): ICourse {
  const x: number[] = [];
  const y: (number | null)[] = [];
  let before: number | null | undefined;
  times.forEach((time, index) => {
    const value = values[index] ?? null;
    if (time > from) {
      const last = x[x.length - 1] ?? from;
      if (x.length === 0 && before !== undefined) {
        x.push(from);
        y.push(before);
      }
      if (before !== undefined && time - last > STEP) {
        x.push(time - 0.5);
        y.push(before);
      }
      x.push(time);
      y.push(value);
    }
    before = value;
  });
  if (before !== undefined) {
    if (x.length === 0) {
      x.push(from);
      y.push(before);
    }
    if (to > (x[x.length - 1] ?? from)) {
      x.push(to);
      y.push(before);
    }
  }
  return { x, y };
}

/** The metric that says how it goes: a loss where there is one. */
export function mainMetric(names: Iterable<string>): string | null {
  const all = [...names];
  return (
    all.find(name => name === 'loss') ??
    all.find(name => /loss/i.test(name)) ??
    all.find(name => !/per_second$/.test(name)) ??
    null
  );
}

function same(a: Record<string, number>, b: Record<string, number>): boolean {
  const names = Object.keys(b);
  return (
    names.length === Object.keys(a).length &&
    names.every(name => Object.is(a[name], b[name]))
  );
}
