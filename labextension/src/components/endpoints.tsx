import { Clipboard } from '@jupyterlab/apputils';
import * as React from 'react';

import { metric } from '../format';
import { IRun, isLive } from '../schema';
import { CommandIDs } from '../tokens';
import { Icon } from './icon';
import { RunActions, RunState } from './runs';
import { Action, Open } from './section';
import { useModel, useServices } from './services';

/** A model that answers over HTTP. */
export const EndpointRow = React.memo(function EndpointRow(props: {
  run: IRun;
}): React.ReactElement {
  const { commands, trans } = useServices();
  const { run } = props;
  const mine = useModel(model => model.snapshot?.cluster.user === run.user);
  const url = text(run.detail['url']);
  const model = text(run.detail['model']);
  const version = text(run.detail['version']);
  const rate = run.metrics['requests_per_second'];
  const p95 = run.metrics['p95_ms'];
  const facts = [
    rate !== undefined && trans.__('%1 requests/s', metric(rate)),
    p95 !== undefined && trans.__('p95 %1 ms', metric(p95))
  ].filter(Boolean);
  return (
    <div className="aios-Row aios-Run" data-run={run.id} data-state={run.state}>
      <div className="aios-Row-head">
        <RunState state={run.state} />
        <Open
          className="aios-Row-title aios-Ellipsis"
          kind="run"
          id={run.id}
          label={trans.__('Details of %1', run.name || run.id)}
        >
          {run.name || run.id}
        </Open>
        <span className="aios-Row-label">
          {[model, version].filter(Boolean).join('/')}
        </span>
        {mine && isLive(run) && (
          <Action
            label={trans.__('Try %1', run.name || run.id)}
            onClick={() => void commands.execute(CommandIDs.tryEndpoint, { run: run.id })}
          >
            <Icon name="play" />
          </Action>
        )}
        <RunActions run={run} />
      </div>
      {url && (
        <div className="aios-Endpoint-url">
          <code className="aios-Ellipsis" title={url}>
            {url}
          </code>
          <Action
            label={trans.__('Copy the address')}
            onClick={() => Clipboard.copyToSystem(url)}
          >
            <Icon name="copy" />
          </Action>
        </div>
      )}
      {facts.length > 0 && <div className="aios-Muted">{facts.join(' · ')}</div>}
      {run.state === 'failed' && run.reason && (
        <div className="aios-Reason">{run.reason}</div>
      )}
    </div>
  );
});

function text(value: unknown): string {
  return typeof value === 'string' || typeof value === 'number' ? `${value}` : '';
}
