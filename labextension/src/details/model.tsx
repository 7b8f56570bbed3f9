import * as React from 'react';

import { IApi } from '../api';
import { useModel, useRegistry, useServices } from '../components/services';
import { clock, metric, metricName } from '../format';
import { IModel, ISigned, ITensor, IVersion, contentText } from '../registry';
import { CommandIDs } from '../tokens';
import { Facts, Gone } from './facts';
import { Sheet } from './sheet';
import { TryModel } from './try';

/** A model: every version with its aliases, metrics and where it comes from, and a form to try it. */
export function ModelDetails(props: { name: string; api: IApi }): React.ReactElement {
  const { trans } = useServices();
  const { models, trouble } = useRegistry();
  const model = models?.find(one => one.name === props.name);
  if (!model) {
    return (
      <Gone>
        {trouble ||
          (models
            ? trans.__('The registry has no model %1.', props.name)
            : trans.__('Asking the registry…'))}
      </Gone>
    );
  }
  const newest = model.versions[0];
  return (
    <article aria-label={model.name}>
      <header className="aios-Details-head">
        <h2>{model.name}</h2>
        <span className="aios-Muted">
          {trans._n('%1 version', '%1 versions', model.versions.length)}
        </span>
      </header>
      <Versions model={model} />
      <TryModel api={props.api} name={model.name} />
      {newest && (
        <>
          <h3>{trans.__('Newest version')}</h3>
          <Facts
            facts={[
              [trans.__('Made from'), newest.framework],
              [trans.__('Takes'), tensors(newest.signature.inputs)],
              [trans.__('Gives'), tensors(newest.signature.outputs)],
              ...Object.entries(newest.params).map(
                ([name, value]) => [metricName(name), value] as const
              )
            ]}
          />
        </>
      )}
    </article>
  );
}

function Versions(props: { model: IModel }): React.ReactElement {
  const { commands, trans } = useServices();
  const may = useModel(model => model.snapshot?.cluster.role !== 'viewer');
  const { model } = props;
  const names = [...new Set(model.versions.flatMap(one => Object.keys(one.metrics)))];
  const promote = (version: IVersion) =>
    void commands.execute(CommandIDs.promote, {
      model: model.name,
      version: version.version
    });
  return (
    <Sheet
      heads={[
        trans.__('Version'),
        trans.__('Aliases'),
        trans.__('Published'),
        ...names.map(metricName),
        trans.__('Comes from'),
        trans.__('Signed by'),
        ''
      ]}
    >
      {model.versions.map(version => (
        <tr key={version.version} data-version={version.version}>
          <th scope="row">{version.version}</th>
          <td>
            {version.aliases.map(alias => (
              <span className="aios-Badge" key={alias}>
                {alias}
              </span>
            ))}
          </td>
          <td>{clock(version.created)}</td>
          {names.map(name => (
            <td key={name}>
              {name in version.metrics ? metric(version.metrics[name] ?? NaN) : ''}
            </td>
          ))}
          <td>{lineage(version)}</td>
          <td>
            <Signatures signed={version.signed ?? []} />
          </td>
          <td>
            {may && (
              <button className="jp-mod-styled" onClick={() => promote(version)}>
                {trans.__('Promote…')}
              </button>
            )}
          </td>
        </tr>
      ))}
    </Sheet>
  );
}

/** Who vouches for a version; what is wrong with a signature stands beside its name. */
export function Signatures(props: { signed: readonly ISigned[] }): React.ReactElement {
  const { trans } = useServices();
  const worth = {
    unknown: trans.__('not known here'),
    broken: trans.__('does not hold')
  };
  if (props.signed.length === 0) {
    return <span className="aios-Muted">{trans.__('nobody')}</span>;
  }
  return (
    <>
      {props.signed.map((one, index) => (
        <div key={index} title={one.problem}>
          {one.name}
          {one.standing !== 'known' && (
            <>
              {' '}
              <span
                className={`aios-Badge${one.standing === 'broken' ? ' aios-mod-error' : ''}`}
              >
                {worth[one.standing]}
              </span>
            </>
          )}
        </div>
      ))}
    </>
  );
}

function lineage(version: IVersion): string {
  return Object.entries(version.lineage)
    .map(([name, value]) => `${name} ${value}`)
    .join(' · ');
}

function tensors(some: readonly ITensor[] = []): string {
  return some.map(one => `${one.name}: ${contentText(one)}`).join(', ');
}
