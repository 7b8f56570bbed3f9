import * as React from 'react';

import { duration, percent } from '../format';
import { isGoing, mayEnd, openOf } from '../overview';
import { IBatch } from '../schema';
import { CommandIDs } from '../tokens';
import { ProgressBar } from './bar';
import { Icon } from './icon';
import { Action } from './section';
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
    stopping: trans.__('batch, stopping…'),
    stopped: trans.__('batch, stopped'),
    ended: trans.__('batch, ended'),
    interrupted: trans.__('batch, interrupted')
  };
  const waiting = batch.total - batch.done - batch.running;
  const counts = [
    trans.__('%1 of %2 done', batch.done, batch.total),
    batch.failed > 0 && trans.__('%1 failed', batch.failed),
    batch.running > 0 && trans.__('%1 running', batch.running),
    isGoing(batch) && waiting > 0 && trans.__('%1 waiting', waiting)
  ].filter(Boolean);
  return (
    <div className="aios-Row aios-Batch" data-batch={batch.id} data-state={batch.state}>
      <div className="aios-Row-head">
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
        <BatchActions batch={batch} />
      </div>
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

/** The buttons of a batch: its results, and Stop while it goes on. */
function BatchActions(props: { batch: IBatch }): React.ReactElement {
  const { commands, trans } = useServices();
  const { batch } = props;
  const may = useModel(model => !!model.snapshot && mayEnd(model.snapshot, batch.user));
  return (
    <>
      {batch.directory && (
        <Action
          label={trans.__('Open the results of %1', batch.label)}
          onClick={() =>
            void commands.execute(CommandIDs.openResults, { batch: batch.id })
          }
        >
          <Icon name="table" />
        </Action>
      )}
      {isGoing(batch) && batch.state !== 'stopping' && may && (
        <Action
          danger
          label={trans.__('Stop the batch %1', batch.label)}
          onClick={() => void commands.execute(CommandIDs.stopBatch, { batch: batch.id })}
        >
          <Icon name="stop" />
        </Action>
      )}
    </>
  );
}

function Took(props: { batch: IBatch }): React.ReactElement {
  const now = useNow();
  return <span>{duration((props.batch.ended ?? now) - props.batch.started)}</span>;
}
