import { Signal } from '@lumino/signaling';

import { ApiError, IApi } from '../src/api';
import { Feed, IBusEvent } from '../src/feed';
import { ClusterModel } from '../src/model';
import { EVENT_SCHEMA, IClusterEvent } from '../src/schema';
import { snapshot } from './rows';

/** A server whose state, bus and failures are the test's. */
class FakeServer {
  readonly bus = new Signal<this, IBusEvent>(this);
  readonly model = new ClusterModel();
  readonly feed: Feed;
  looks = 0;
  pasts = 0;
  seq = 1;
  up = true;

  constructor() {
    const api = {
      snapshot: known => this.answer(known),
      history: () => {
        this.pasts++;
        const x1 = { time: [1], utilization: [50], memory: [0] };
        return Promise.resolve({ devices: { x1 }, runs: {} });
      }
    } as Partial<IApi> as IApi;
    this.feed = new Feed({ api, bus: this.bus, model: this.model, standby: 'never' });
  }

  answer(known: { stream: string; seq: number }): Promise<IClusterEvent> {
    this.looks++;
    if (!this.up) {
      return Promise.reject(new ApiError('The Jupyter server does not answer.', 0));
    }
    const head = { stream: 's', seq: this.seq, time: Date.now() / 1000 };
    const same = known.stream === 's' && known.seq === this.seq;
    return Promise.resolve(
      same ? { ...head, unchanged: true } : { ...head, snapshot: snapshot() }
    );
  }

  /** Something changes; the event reaches the front end or not. */
  change(arrives: boolean): void {
    this.seq++;
    if (arrives) {
      this.emit(this.seq);
    }
  }

  emit(seq: number): void {
    this.bus.emit({
      schema_id: EVENT_SCHEMA,
      stream: 's',
      seq,
      time: Date.now() / 1000,
      delta: {}
    } as IBusEvent);
  }
}

describe('Feed', () => {
  let server: FakeServer;

  /** Let timers of so many milliseconds and the promises behind them run. */
  const pass = (milliseconds: number) => jest.advanceTimersByTimeAsync(milliseconds);

  beforeEach(async () => {
    jest.useFakeTimers();
    server = new FakeServer();
    server.feed.start();
    await pass(50);
  });

  afterEach(() => {
    server.feed.dispose();
    jest.useRealTimers();
  });

  it('loads one snapshot and then lives on events', async () => {
    expect(server.looks).toBe(1);
    server.change(true);
    server.change(true);
    expect(server.model.position.seq).toBe(3);
    expect(server.model.link).toBe('live');
    await pass(5000);
    expect(server.looks).toBe(1);
  });

  it('asks again when an event was missed', async () => {
    server.change(false);
    server.change(true);
    await pass(50);
    expect(server.looks).toBe(2);
    expect(server.model.position.seq).toBe(3);
    expect(server.model.link).toBe('live');
  });

  it('keeps an event that arrives while it asks', async () => {
    let release: (answer: IClusterEvent) => void = () => undefined;
    const late = new Promise<IClusterEvent>(resolve => (release = resolve));
    jest.spyOn(server, 'answer').mockReturnValueOnce(late);
    void server.feed.refresh();
    await pass(10);
    server.change(true);
    release({ stream: 's', seq: 1, time: 0, unchanged: true });
    await pass(10);
    expect(server.model.position.seq).toBe(2);
  });

  it('polls when the stream has gone silent, and stops when it speaks again', async () => {
    server.change(false);
    await pass(16000);
    expect(server.model.position.seq).toBe(2);
    server.change(false);
    await pass(2000);
    expect(server.model.link).toBe('polling');
    const before = server.looks;
    server.change(false);
    await pass(3100);
    expect(server.looks - before).toBeGreaterThanOrEqual(2);
    expect(server.model.position.seq).toBe(4);
    server.change(true);
    expect(server.model.link).toBe('live');
  });

  it('stays live when nothing happens', async () => {
    await pass(60000);
    expect(server.model.link).toBe('live');
    expect(server.looks).toBeLessThan(8);
  });

  it('says that the server is lost, and comes back by itself', async () => {
    server.up = false;
    await pass(40000);
    expect(server.model.link).toBe('lost');
    server.up = true;
    await pass(40000);
    expect(server.model.link).toBe('live');
  });

  it('ignores events of others', () => {
    server.bus.emit({ schema_id: 'https://example.org/other' });
    expect(server.model.position.seq).toBe(1);
  });

  it('asks for the past once, with the first snapshot', async () => {
    expect(server.pasts).toBe(1);
    expect(server.model.history.device('x1', 2).utilization.y).toEqual([50, 50]);
    server.change(false);
    await pass(60_000);
    expect(server.pasts).toBe(1);
  });
});
