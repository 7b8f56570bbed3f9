import * as React from 'react';

import { useServices } from '../components/services';
import {
  answerTable,
  IAnswerTable,
  IEndpointAnswer,
  IEndpointForm,
  written
} from '../endpoints';
import { metric } from '../format';
import { Sheet } from './sheet';

/** Characters of JSON that are shown at most. */
const MOST = 20_000;

/** What an endpoint has answered: which version, how quickly, and what. */
export function Answer(props: {
  form: IEndpointForm;
  answer: IEndpointAnswer;
}): React.ReactElement {
  const { trans } = useServices();
  const { form, answer } = props;
  const table = React.useMemo(
    () => answerTable(answer.outputs, form.outputs),
    [answer, form]
  );
  const json = React.useMemo(() => written(answer.outputs), [answer]);
  return (
    <section aria-label={trans.__('Answer')} className="aios-Answer">
      {table && <Values table={table} />}
      <details open={!table}>
        <summary>{trans.__('As JSON')}</summary>
        <pre tabIndex={0}>{json.length > MOST ? `${json.slice(0, MOST)}…` : json}</pre>
      </details>
    </section>
  );
}

function Values(props: { table: IAnswerTable }): React.ReactElement {
  const { trans } = useServices();
  const { rows, samples, left } = props.table;
  const heads = Array.from({ length: samples }, (_, at) =>
    samples > 1 ? trans.__('Sample %1', at + 1) : trans.__('Value')
  );
  return (
    <>
      <Sheet heads={[trans.__('Output'), ...heads]}>
        {rows.map(({ name, values, largest }) => (
          <tr key={name}>
            <th scope="row">{name}</th>
            {values.map((value, at) => (
              <td key={at}>
                {largest[at] ? (
                  <strong>
                    {text(value)}{' '}
                    <span className="aios-Badge">{trans.__('largest')}</span>
                  </strong>
                ) : (
                  text(value)
                )}
              </td>
            ))}
          </tr>
        ))}
      </Sheet>
      {left > 0 && (
        <p className="aios-Muted">
          {trans.__('The %1 largest of %2', rows.length, rows.length + left)}
        </p>
      )}
    </>
  );
}

function text(value: unknown): string {
  return typeof value === 'number' ? metric(value) : String(value);
}
