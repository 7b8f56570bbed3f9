import * as React from 'react';

import { ClusterSection } from '../src/components/cluster';
import { DeviceRow } from '../src/components/device';
import { LeasesSection } from '../src/components/leases';
import { QueueSection } from '../src/components/queue';
import { RunsSection } from '../src/components/runs';
import { LeaseDetails } from '../src/details/lease';
import { IBatch, INode } from '../src/schema';
import { drawn } from './drawn';
import { batch, device, lease, request, run, snapshot } from './rows';

const FOLDS = { folded: new Set<string>(), toggle: () => undefined };
const BAD = '<img src=x onerror=alert(1)>';

describe('a device', () => {
  const row = (rest: object, state: 'free' | 'held' | 'outside' = 'held') => (
    <DeviceRow device={device('g0', rest)} run="digits" state={state} user="ada" />
  );

  it('says how busy it is in words as well', () => {
    const html = drawn(
      row({ utilization: 42, memory_used: 8 * 1024 ** 3, temperature: 61 })
    );
    expect(html).toMatch(/aria-valuenow="42"[^>]*role="meter"/);
    expect(html).toContain('8 / 16 GB');
    expect(html).toContain('61 °C');
    expect(html).toContain('in the last two minutes');
  });

  it('names its holder, notebook and run, or who uses it without a lease', () => {
    const holder = { lease: 'l1', user: 'bob', label: 'sweep.ipynb', run: 'r1' };
    expect(drawn(row({ holder }))).toContain('bob · sweep.ipynb · digits');
    const outside = [{ pid: 7, memory: 0, name: 'python', user: 'eve' }];
    expect(drawn(row({ outside }, 'outside'))).toContain('outside any lease: pid 7');
  });

  it('says that it is simulated', () => {
    expect(drawn(row({ kind: 'simulated' }))).toContain('simulated');
  });
});

describe('a node that Slurm lends', () => {
  const html = (rest: Partial<INode>) => {
    const nodes = snapshot().nodes;
    const node = { ...nodes.n1!, id: 'slurm-12-0', ...rest };
    const cluster = snapshot({ nodes: { [node.id]: node }, devices: {} });
    return drawn(<ClusterSection folds={FOLDS} />, cluster);
  };

  it('says why it is yet to come, and what became of it', () => {
    const note = 'Slurm job 12 waits (Priority).';
    const waiting = html({ state: 'waiting', host: '', note });
    expect(waiting).toContain('slurm-12-0');
    expect(waiting).toContain('yet to come');
    expect(waiting).toMatch(/aios-Ellipsis">Slurm job 12 waits \(Priority\)/);
    const ended = html({ state: 'ended', host: '', note: 'It was cancelled.' });
    expect(ended).toContain('gone');
    expect(ended).not.toContain('aios-mod-error');
    expect(html({ state: 'lost' })).toContain('aios-mod-error');
  });

  it('says until when it is leased', () => {
    expect(html({ until: Date.now() / 1000 + 60 })).toMatch(/0 of 0 free · until /);
    expect(html({})).not.toContain('until');
  });
});

describe('what others have named', () => {
  it('is text everywhere', () => {
    const holder = { lease: 'l1', user: BAD, label: BAD, run: 'r1' };
    const cluster = snapshot({
      queue: { q1: request('q1', { user: BAD, label: BAD, reason: BAD }) },
      leases: {
        l1: lease('l1', { user: BAD, label: BAD, reason: BAD, preempted: true })
      },
      runs: {
        r1: run('r1', {
          name: BAD,
          label: BAD,
          reason: BAD,
          state: 'failed',
          ended: 2000,
          framework: BAD,
          metrics: { [BAD]: 1 }
        })
      }
    });
    const whole = drawn(
      <>
        <DeviceRow
          device={device('g0', { holder, name: BAD, host: BAD })}
          run={BAD}
          state="held"
          user="ada"
          withHost
        />
        <QueueSection />
        <LeasesSection />
        <RunsSection folds={FOLDS} />
        <LeaseDetails id="l1" />
      </>,
      cluster
    );
    expect(whole).not.toContain('<img');
    expect(whole.split('&lt;img').length).toBeGreaterThan(10);
  });
});

describe('a batch', () => {
  it('says how many of its notebooks are done, failed, running and waiting', () => {
    const batches = { b1: batch('b1', { label: BAD }) };
    const html = drawn(<RunsSection folds={FOLDS} />, snapshot({ batches }));
    expect(html).toContain('5 of 12 done · 1 failed · 2 running · 5 waiting');
    expect(html).toContain('aria-expanded="false"');
    expect(html).not.toContain('<img');
  });

  it('has its buttons for who may, and Stop while it goes on', () => {
    const verbs = (rest: Partial<IBatch>) => {
      const batches = { b1: batch('b1', rest) };
      const html = drawn(<RunsSection folds={FOLDS} />, snapshot({ batches }));
      return [...html.matchAll(/aria-label="(Stop|Open the results)/g)].map(
        match => match[1]
      );
    };
    expect(verbs({ directory: '/d' })).toEqual(['Open the results', 'Stop']);
    expect(verbs({ directory: '/d', state: 'stopping' })).toEqual(['Open the results']);
    expect(verbs({ directory: '/d', state: 'ended', ended: 2000 })).toEqual([
      'Open the results'
    ]);
    expect(verbs({ user: 'bob' })).toEqual([]);
  });
});

describe('buttons', () => {
  const cluster = (role: 'user' | 'viewer' | 'admin') =>
    snapshot({
      cluster: { ...snapshot().cluster, role },
      queue: { q1: request('q1') },
      leases: { l1: lease('l1'), l2: lease('l2', { user: 'bob' }) },
      runs: { r1: run('r1', { label: 'a.ipynb' }), r2: run('r2', { user: 'bob' }) }
    });
  const all = (
    <>
      <QueueSection />
      <LeasesSection />
      <RunsSection folds={FOLDS} />
    </>
  );
  const verbs = (html: string) =>
    [
      ...html.matchAll(
        /aria-label="(Change the priority|Cancel|Release|Stop|Go to|Open the log)/g
      )
    ].map(match => match[1]);

  it('are there for what is one’s own, for all where one is admin, for nothing to viewers', () => {
    expect(verbs(drawn(all, cluster('user')))).toEqual([
      'Change the priority',
      'Cancel',
      'Release',
      'Go to',
      'Open the log',
      'Stop'
    ]);
    expect(verbs(drawn(all, cluster('admin'))).length).toBe(9);
    expect(verbs(drawn(all, cluster('viewer')))).toEqual(['Go to']);
  });
});
