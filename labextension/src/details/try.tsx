import * as React from 'react';

import { IApi } from '../api';
import { Nothing } from '../components/section';
import { useModel, useServices } from '../components/services';
import { IEndpointAnswer, IEndpointForm } from '../endpoints';
import { metric } from '../format';
import { endpointsOf } from '../overview';
import { IRun, isLive } from '../schema';
import { Answer } from './answer';
import { TryForm } from './tryform';

/** A form with the fields of an endpoint's signature, and what the endpoint answers. */
export function TryIt(props: { api: IApi; run: IRun }): React.ReactElement {
  const { trans } = useServices();
  const { api, run } = props;
  const mine = useModel(model => model.snapshot?.cluster.user === run.user);
  if (!mine) {
    return (
      <p className="aios-Muted">
        {trans.__('Only %1 can try it from here: its token is theirs.', run.user)}
      </p>
    );
  }
  if (!isLive(run) || !run.detail['url']) {
    return (
      <p className="aios-Muted" role="status">
        {isLive(run)
          ? trans.__('It can be tried as soon as it has started.')
          : trans.__('It has ended and answers no more.')}
      </p>
    );
  }
  // Another version may take something else, and has another example.
  const version = String(run.detail['version']);
  return <Asking api={api} name={run.name} key={run.id} version={version} />;
}

/** The endpoints of this user that serve a model: one of them is tried. */
export function TryModel(props: { api: IApi; name: string }): React.ReactElement {
  const { trans } = useServices();
  const runs = useModel(model => model.snapshot?.runs);
  const user = useModel(model => model.snapshot?.cluster.user ?? '');
  const endpoints = React.useMemo(
    () => endpointsOf(runs ?? {}, props.name, user),
    [runs, props.name, user]
  );
  const [chosen, choose] = React.useState('');
  const run = endpoints.find(one => one.id === chosen) ?? endpoints[0];
  return (
    <section aria-label={trans.__('Try it')}>
      <h3>{trans.__('Try it')}</h3>
      {run ? (
        <>
          {endpoints.length > 1 && (
            <label className="aios-Tools">
              {trans.__('Endpoint')}
              <select onChange={event => choose(event.target.value)} value={run.id}>
                {endpoints.map(one => (
                  <option key={one.id} value={one.id}>
                    {one.name}
                  </option>
                ))}
              </select>
            </label>
          )}
          <TryIt api={props.api} run={run} />
        </>
      ) : (
        <Nothing command={`%aios serve ${props.name}`}>
          {trans.__('No endpoint of yours serves this model. In a notebook:')}
        </Nothing>
      )}
    </section>
  );
}

function Asking(props: { api: IApi; name: string; version: string }): React.ReactElement {
  const { trans } = useServices();
  const { api, name, version } = props;
  const { form, trouble, again } = useForm(api, name, version);
  if (trouble) {
    return (
      <>
        <p className="aios-Reason" role="alert">
          {trouble}
        </p>
        <div className="aios-Tools">
          <button className="jp-mod-styled" onClick={again}>
            {trans.__('Ask again')}
          </button>
        </div>
      </>
    );
  }
  if (!form) {
    return (
      <p className="aios-Muted" role="status">
        {trans.__('Asking the endpoint what it takes…')}
      </p>
    );
  }
  // What was filled in stays as long as it is for the same fields.
  return <Tried api={api} form={form} key={JSON.stringify(form.inputs)} />;
}

function useForm(
  api: IApi,
  name: string,
  version: string
): { form: IEndpointForm | null; trouble: string; again: () => void } {
  const [asked, setAsked] = React.useState(0);
  const [found, setFound] = React.useState<{
    form: IEndpointForm | null;
    trouble: string;
  }>({ form: null, trouble: '' });
  React.useEffect(() => {
    let current = true;
    api.endpoint(name).then(
      form => current && setFound({ form, trouble: '' }),
      (error: unknown) => current && setFound({ form: null, trouble: said(error) })
    );
    return () => {
      current = false;
    };
  }, [api, name, version, asked]);
  const again = () => {
    setFound({ form: null, trouble: '' });
    setAsked(asked + 1);
  };
  return { ...found, again };
}

function Tried(props: { api: IApi; form: IEndpointForm }): React.ReactElement {
  const { trans } = useServices();
  const { api, form } = props;
  const [busy, setBusy] = React.useState(false);
  const [answer, setAnswer] = React.useState<IEndpointAnswer | null>(null);
  const [trouble, setTrouble] = React.useState('');
  const ask = (body: string) => {
    setBusy(true);
    api
      .predict(form.name, body)
      .then(
        given => {
          setAnswer(given);
          setTrouble('');
        },
        (error: unknown) => {
          setAnswer(null);
          setTrouble(said(error));
        }
      )
      .finally(() => setBusy(false));
  };
  const several = form.versions.length > 1 ? form.versions.join(', ') : '';
  return (
    <>
      <TryForm ask={ask} busy={busy} form={form} />
      <div aria-live="polite" className="aios-Tried">
        {trouble && <p className="aios-Reason">{trouble}</p>}
        {answer && (
          <p>
            {trans.__(
              'Version %1 answered in %2 ms, as seen from the Jupyter server.',
              answer.version,
              metric(answer.milliseconds)
            )}{' '}
            {several && (
              <span className="aios-Muted">
                {trans.__('Requests are shared among the versions %1.', several)}
              </span>
            )}
          </p>
        )}
      </div>
      {answer && <Answer answer={answer} form={form} />}
    </>
  );
}

function said(error: unknown): string {
  return error instanceof Error ? error.message : String(error);
}
