import * as React from 'react';

import { duration, percent } from '../format';
import { openOf } from '../overview';
import { IBatch } from '../schema';
import { ProgressBar } from './bar';
import { Icon } from './icon';
import { useModel, useNow, useServices } from './services';

/** A batch of notebooks: how far it is, and a button that shows its runs. */
export const BatchHead = React.memo(function BatchHead(props: {
  batch: IBatch;
  open: boolean;
  toggle: (key: string) => void;
}): React.ReactElement {
  const { trans } = useServices();
  const { batch, open } = props;
  const mine = useModel(model => model.snapshot?.cluster.user === batch.user);
  const states: Record<IBatch['state'], string> = {
    running: trans.__('batch'),
    ended: trans.__('batch, ended'),
    interrupted: trans.__('batch, interrupted')
  };
  const waiting = batch.total - batch.done - batch.running;
  const counts = [
    trans.__('%1 of %2 done', batch.done, batch.total),
    batch.failed > 0 && trans.__('%1 failed', batch.failed),
    batch.running > 0 && trans.__('%1 running', batch.running),
    batch.state === 'running' && waiting > 0 && trans.__('%1 waiting', waiting)
  ].filter(Boolean);
  return (
    <div className="aios-Row aios-Batch" data-batch={batch.id} data-state={batch.state}>
      <button
        aria-expanded={open}
        className="aios-Batch-head"
        onClick={() => props.toggle(openOf(batch))}
      >
        <Icon name="caret" className="aios-Caret" />
        <span className="aios-Row-title aios-Ellipsis">{batch.label}</span>
        <span className="aios-Row-label">
          {mine ? '' : batch.user} {states[batch.state]}
        </span>
      </button>
      <ProgressBar
        label={trans.__('Progress of %1', batch.label)}
        percent={percent(batch.done, batch.total)}
        state={batch.failed > 0 ? 'failed' : batch.state}
      />
      <div className="aios-Facts aios-mod-wrap aios-Muted">
        <span>{counts.join(' · ')}</span>
        <Took batch={batch} />
      </div>
    </div>
  );
});

function Took(props: { batch: IBatch }): React.ReactElement {
  const now = useNow();
  return <span>{duration((props.batch.ended ?? now) - props.batch.started)}</span>;
}
