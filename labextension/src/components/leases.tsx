import * as React from 'react';

import { duration, percent } from '../format';
import { deviceName, mayEnd } from '../overview';
import { ILease } from '../schema';
import { CommandIDs } from '../tokens';
import { Rows } from './rows';
import { Action, Nothing, Open } from './section';
import { useModel, useNow, useServices } from './services';

/** Who holds what, and for how long; your own first. */
export function LeasesSection(): React.ReactElement {
  const { trans } = useServices();
  const leases = useModel(model => model.snapshot?.leases);
  const user = useModel(model => model.snapshot?.cluster.user);
  const rows = Object.values(leases ?? {}).sort(
    (a, b) => Number(b.user === user) - Number(a.user === user) || b.granted - a.granted
  );
  if (rows.length === 0) {
    return (
      <Nothing command="%aios alloc --devices 1">
        {trans.__('No devices are leased. In a notebook:')}
      </Nothing>
    );
  }
  return (
    <Rows
      items={rows}
      keyOf={lease => lease.id}
      height={() => 52}
      label={trans.__('Leases')}
    >
      {lease => <LeaseRow lease={lease} />}
    </Rows>
  );
}

function LeaseRow(props: { lease: ILease }): React.ReactElement {
  const { commands, trans } = useServices();
  const snapshot = useModel(model => model.snapshot);
  const { lease } = props;
  const names = lease.devices.map(id => deviceName(snapshot?.devices[id], id));
  const mine = lease.user === snapshot?.cluster.user;
  return (
    <div className="aios-Row" data-lease={lease.id} data-state={lease.state}>
      <div className="aios-Row-head">
        <Open
          className="aios-Row-title aios-Ellipsis"
          kind="lease"
          id={lease.id}
          label={trans.__('Details of the lease %1', lease.label || lease.id)}
        >
          {lease.label || lease.id}
        </Open>
        {lease.state === 'active' && snapshot && mayEnd(snapshot, lease.user) && (
          <Action
            danger
            label={trans.__('Release %1', names.join(', '))}
            onClick={() => void commands.execute(CommandIDs.release, { lease: lease.id })}
          >
            {trans.__('Release')}
          </Action>
        )}
      </div>
      <div className="aios-Facts aios-Muted">
        <span className="aios-Ellipsis" title={names.join(', ')}>
          {mine ? trans.__('you') : lease.user} · {names.join(', ')}
          {lease.preemptible && ` · ${trans.__('preemptible')}`}
        </span>
        <TimeLeft lease={lease} />
      </div>
      <Idle lease={lease} />
      {lease.preempted && <div className="aios-Reason">{lease.reason}</div>}
    </div>
  );
}

function Idle(props: { lease: ILease }): React.ReactElement | null {
  const { trans } = useServices();
  const now = useNow();
  const { idle_since: since, idle_ends: ends, state } = props.lease;
  if (!since || !ends || state === 'ending') {
    return null;
  }
  return (
    <div className="aios-Reason aios-TimeLeft aios-mod-warn">
      {trans.__('idle for %1, ends in %2', duration(now - since), duration(ends - now))}
    </div>
  );
}

/** How long a lease lasts, in words that change color near its end. */
export function TimeLeft(props: { lease: ILease }): React.ReactElement {
  const { trans } = useServices();
  const now = useNow();
  const { expires, granted, preempted, state, warned } = props.lease;
  if (state === 'ending') {
    return (
      <span className="aios-Badge">
        {preempted ? trans.__('preempted') : trans.__('ending')}
      </span>
    );
  }
  if (expires === null) {
    return <span className="aios-Muted">{trans.__('no time limit')}</span>;
  }
  const left = expires - now;
  const soon = left < 300 && (percent(left, expires - granted) ?? 0) < 25;
  const nearEnd = warned || soon;
  return (
    <span
      className={nearEnd ? 'aios-TimeLeft aios-mod-warn' : 'aios-TimeLeft'}
      title={trans.__('Ends at %1', new Date(expires * 1000).toLocaleTimeString())}
    >
      {warned
        ? trans.__('ends in %1', duration(left))
        : trans.__('%1 left', duration(left))}
    </span>
  );
}
