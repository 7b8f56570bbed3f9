import { TranslationBundle } from '@jupyterlab/translation';
import * as React from 'react';

import { useServices } from '../components/services';
import {
  bodyOf,
  emptyValues,
  exampleValues,
  FieldKind,
  fieldKind,
  IEndpointForm,
  Problem,
  Values
} from '../endpoints';
import { pictureOf } from '../picture';
import { contentText, ITensor } from '../registry';
import { Picture } from './picture';

/** Lines of a field for JSON, and of one for text that stands alone. */
const JSON_LINES = 8;
const TEXT_LINES = 3;

/** A field for each input of an endpoint; `ask` gets the body once all of them make sense. */
export function TryForm(props: {
  form: IEndpointForm;
  busy: boolean;
  ask: (body: string) => void;
}): React.ReactElement {
  const { trans } = useServices();
  const { form, busy, ask } = props;
  const [values, setValues] = React.useState<Values>(() => emptyValues(form.inputs));
  const [problems, setProblems] = React.useState<Record<string, Problem>>({});
  const [refused, setRefused] = React.useState(0);
  const element = React.useRef<HTMLFormElement>(null);
  // Not with each change of the problems: one that is mended must not lead away from its field.
  React.useEffect(() => {
    element.current?.querySelector<HTMLElement>('[aria-invalid=true]')?.focus();
  }, [refused]);
  const submit = () => {
    if (busy) {
      return;
    }
    const found = bodyOf(form.inputs, values);
    if ('body' in found) {
      setProblems({});
      ask(found.body);
    } else {
      setProblems(found.problems);
      setRefused(count => count + 1);
    }
  };
  const change = (name: string, value: string) => {
    setValues(before => ({ ...before, [name]: value }));
    setProblems(({ [name]: _, ...others }) => others);
  };
  return (
    <form
      className="aios-Try"
      noValidate
      onKeyDown={event => {
        if (event.key === 'Enter' && (event.ctrlKey || event.metaKey)) {
          event.preventDefault();
          submit();
        }
      }}
      onSubmit={event => {
        event.preventDefault();
        submit();
      }}
      ref={element}
    >
      <div className="aios-Try-fields">
        {form.inputs.map(input => (
          <Field
            alone={form.inputs.length === 1}
            input={input}
            key={input.name}
            onChange={value => change(input.name, value)}
            problem={problems[input.name]}
            value={values[input.name] ?? ''}
          />
        ))}
      </div>
      <div className="aios-Tools">
        <button aria-busy={busy} className="jp-mod-styled jp-mod-accept" type="submit">
          {busy ? trans.__('Asking…') : trans.__('Predict')}
        </button>
        {form.example ? (
          <button
            className="jp-mod-styled"
            onClick={() => {
              setValues(exampleValues(form));
              setProblems({});
            }}
            type="button"
          >
            {trans.__('Fill with the example')}
          </button>
        ) : (
          <span className="aios-Muted">{form.note}</span>
        )}
      </div>
    </form>
  );
}

interface IField {
  input: ITensor;
  value: string;
  problem: Problem | undefined;
  onChange: (value: string) => void;
}

/** One input: its name, what it takes, and something to fill in. */
function Field(props: IField & { alone: boolean }): React.ReactElement {
  const { trans } = useServices();
  const id = React.useId();
  const { input, value, problem, onChange, alone } = props;
  const kind = fieldKind(input);
  const picture = React.useMemo(() => pictureOf(input), [input]);
  const about = {
    id,
    'aria-describedby': problem ? `${id}-hint ${id}-problem` : `${id}-hint`,
    'aria-invalid': problem ? true : undefined
  };
  return (
    <div className="aios-Field" data-input={input.name} data-kind={kind}>
      <label htmlFor={id}>{input.name}</label>
      <Control about={about} alone={alone} kind={kind} {...{ input, value, onChange }} />
      <span className="aios-Muted" id={`${id}-hint`}>
        {hint(input, kind, trans)}
      </span>
      {picture && <Picture onText={onChange} picture={picture} value={value} />}
      {problem && (
        <span className="aios-Field-problem" id={`${id}-problem`}>
          {problemText(problem, trans)}
        </span>
      )}
    </div>
  );
}

function Control(props: {
  about: React.AriaAttributes & { id: string };
  alone: boolean;
  input: ITensor;
  kind: FieldKind;
  value: string;
  onChange: (value: string) => void;
}): React.ReactElement {
  const { trans } = useServices();
  const { about, alone, input, kind, value, onChange } = props;
  if (kind === 'yes' && !input.missing) {
    return (
      <input
        {...about}
        checked={value === 'true'}
        onChange={event => onChange(`${event.target.checked}`)}
        type="checkbox"
      />
    );
  }
  if (kind === 'yes') {
    return (
      <select
        {...about}
        className="jp-mod-styled"
        onChange={event => onChange(event.target.value)}
        value={value}
      >
        <option value="">{trans.__('missing')}</option>
        <option value="true">{trans.__('yes')}</option>
        <option value="false">{trans.__('no')}</option>
      </select>
    );
  }
  if (kind === 'json' || (kind === 'text' && alone)) {
    return (
      <textarea
        {...about}
        className="jp-mod-styled"
        data-json={kind === 'json' || undefined}
        onChange={event => onChange(event.target.value)}
        rows={kind === 'json' ? JSON_LINES : TEXT_LINES}
        spellCheck={false}
        value={value}
      />
    );
  }
  return (
    <input
      {...about}
      autoComplete="off"
      className="jp-mod-styled"
      inputMode={kind === 'number' ? 'decimal' : kind === 'whole' ? 'numeric' : 'text'}
      onChange={event => onChange(event.target.value)}
      spellCheck={false}
      type="text"
      value={value}
    />
  );
}

function hint(input: ITensor, kind: FieldKind, trans: TranslationBundle): string {
  if (kind === 'json') {
    return trans.__('%1, as JSON: one sample, or a list of several', contentText(input));
  }
  const names: Record<FieldKind, string> = {
    number: trans.__('number'),
    whole: trans.__('whole number'),
    text: trans.__('text'),
    yes: trans.__('yes or no'),
    json: ''
  };
  return input.missing ? trans.__('%1; empty is missing', names[kind]) : names[kind];
}

function problemText(problem: Problem, trans: TranslationBundle): string {
  switch (problem) {
    case 'empty':
      return trans.__('Fill this in.');
    case 'number':
      return trans.__('Write a number, such as 0.5.');
    case 'whole':
      return trans.__('Write a whole number, such as 3.');
    case 'json':
      return trans.__('This is not JSON; write lists, such as [[1, 2], [3, 4]].');
  }
}
