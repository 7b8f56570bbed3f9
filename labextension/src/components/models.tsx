import * as React from 'react';

import { metric, metricName } from '../format';
import { sortedRuns } from '../overview';
import { IModel, versionBefore } from '../registry';
import { CommandIDs } from '../tokens';
import { EndpointRow } from './endpoints';
import { Icon } from './icon';
import { Rows } from './rows';
import { Action, Nothing, Open } from './section';
import { useModel, useRegistry, useServices } from './services';

/** Metrics of a model's newest version that are shown in its row. */
const METRICS = 3;

/** Models: those that answer over HTTP, then all that were published. */
export function ModelsSection(): React.ReactElement {
  const { trans } = useServices();
  const runs = useModel(model => model.snapshot?.runs);
  const { endpoints } = React.useMemo(() => sortedRuns(runs ?? {}), [runs]);
  const { models, trouble } = useRegistry();
  return (
    <>
      {endpoints.length > 0 && (
        <Rows
          items={endpoints}
          keyOf={run => run.id}
          height={() => 64}
          label={trans.__('Endpoints')}
        >
          {run => <EndpointRow run={run} />}
        </Rows>
      )}
      {models && models.length > 0 && (
        <Rows
          items={models}
          keyOf={model => model.name}
          height={() => 48}
          label={trans.__('Published models')}
        >
          {model => <ModelRow model={model} />}
        </Rows>
      )}
      {models?.length === 0 && (
        <Nothing command="%aios publish MODEL --name NAME">
          {trans.__('No model has been published. In a notebook:')}
        </Nothing>
      )}
      {models && models.length > 0 && endpoints.length === 0 && (
        <Nothing command="%aios serve MODEL">
          {trans.__('No model is being served. In a notebook:')}
        </Nothing>
      )}
      {trouble && <p className="aios-Nothing">{trouble}</p>}
    </>
  );
}

const ModelRow = React.memo(function ModelRow(props: {
  model: IModel;
}): React.ReactElement {
  const { trans } = useServices();
  const { model } = props;
  const newest = model.versions[0];
  const numbers = Object.entries(newest?.metrics ?? {})
    .slice(0, METRICS)
    .map(([name, value]) => `${metricName(name)} ${metric(value)}`);
  return (
    <div className="aios-Row aios-Model" data-model={model.name}>
      <div className="aios-Row-head">
        <Icon name="model" />
        <Open
          className="aios-Row-title aios-Ellipsis"
          kind="model"
          id={model.name}
          label={trans.__('Details of the model %1', model.name)}
        >
          {model.name}
        </Open>
        <span className="aios-Row-label">
          {trans._n('%1 version', '%1 versions', model.versions.length)}
        </span>
        <ModelActions model={model} />
      </div>
      <div className="aios-Facts aios-mod-wrap aios-Muted">
        <span className="aios-Aliases">
          {Object.entries(model.aliases).map(([alias, version]) => (
            <span className="aios-Badge" key={alias}>
              {alias} → {version}
            </span>
          ))}
        </span>
        <span>{numbers.join(' · ')}</span>
      </div>
    </div>
  );
});

/** Promote and Roll back. */
export function ModelActions(props: { model: IModel }): React.ReactElement | null {
  const { commands, trans } = useServices();
  const may = useModel(model => model.snapshot?.cluster.role !== 'viewer');
  const { model } = props;
  const back = Object.keys(model.aliases).filter(alias => versionBefore(model, alias));
  if (!may) {
    return null;
  }
  const [alias] = back;
  return (
    <>
      <Action
        label={trans.__('Promote a version of %1', model.name)}
        onClick={() => void commands.execute(CommandIDs.promote, { model: model.name })}
      >
        <Icon name="up" />
      </Action>
      {alias && (
        <Action
          danger
          label={trans.__('Roll %1 back to its version before', `${model.name}@${alias}`)}
          onClick={() =>
            void commands.execute(CommandIDs.rollback, { model: model.name, alias })
          }
        >
          <Icon name="back" />
        </Action>
      )}
    </>
  );
}
