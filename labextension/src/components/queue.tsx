import * as React from 'react';

import { duration } from '../format';
import { mayEnd } from '../overview';
import { IRequest } from '../schema';
import { CommandIDs } from '../tokens';
import { Icon } from './icon';
import { Rows } from './rows';
import { Action, Nothing } from './section';
import { useModel, useNow, useServices } from './services';

/** Who waits, in order, and why. */
export function QueueSection(): React.ReactElement {
  const { trans } = useServices();
  const queue = useModel(model => model.snapshot?.queue);
  const rows = Object.values(queue ?? {}).sort((a, b) => a.position - b.position);
  if (rows.length === 0) {
    return <Nothing>{trans.__('Nobody is waiting.')}</Nothing>;
  }
  return (
    <Rows
      items={rows}
      keyOf={request => request.id}
      height={() => 64}
      label={trans.__('Queue')}
    >
      {request => <RequestRow request={request} />}
    </Rows>
  );
}

function RequestRow(props: { request: IRequest }): React.ReactElement {
  const { commands, trans } = useServices();
  const snapshot = useModel(model => model.snapshot);
  const now = useNow();
  const { request } = props;
  const mine = request.user === snapshot?.cluster.user;
  const count = {
    gpu: trans._n('%1 GPU', '%1 GPUs', request.count),
    device: trans._n('%1 device', '%1 devices', request.count),
    cpu: trans._n('%1 CPU', '%1 CPUs', request.count)
  }[request.want];
  const elastic = request.least && request.least < request.count;
  const what = elastic ? `${request.least}–${count}` : count;
  const waiting = trans.__('waiting %1', duration(now - request.submitted));
  const starts = request.eta
    ? ` · ${trans.__('starts in about %1', duration(Math.max(0, request.eta - now)))}`
    : '';
  const queue =
    request.queue && request.queue !== 'default'
      ? ` · ${trans.__('queue %1', request.queue)}`
      : '';
  const priority = request.priority
    ? ` · ${trans.__('priority %1', request.priority)}`
    : '';
  const again = request.preempted ? ` · ${trans.__('preempted, waits again')}` : '';
  return (
    <div className="aios-Row" data-request={request.id}>
      <div className="aios-Row-head">
        <span className="aios-Position" title={trans.__('Position in the queue')}>
          {request.position}
        </span>
        <span className="aios-Row-title">{what}</span>
        <span className="aios-Row-label">{request.label}</span>
        {snapshot && mayEnd(snapshot, request.user) && (
          <Action
            label={trans.__('Change the priority of the request for %1', what)}
            onClick={() =>
              void commands.execute(CommandIDs.reprioritize, { request: request.id })
            }
          >
            <Icon name="priority" />
          </Action>
        )}
        {snapshot && mayEnd(snapshot, request.user) && (
          <Action
            danger
            label={trans.__('Cancel the request for %1', what)}
            onClick={() =>
              void commands.execute(CommandIDs.cancel, { request: request.id })
            }
          >
            <Icon name="close" />
          </Action>
        )}
      </div>
      <div className="aios-Muted">
        {mine ? trans.__('you') : request.user} · {waiting}
        {queue}
        {priority}
        {again}
        {starts}
      </div>
      {request.reason && (
        <div className="aios-Reason" title={request.why}>
          {request.reason}
        </div>
      )}
    </div>
  );
}
