import * as React from 'react';

import { CommandIDs } from '../tokens';
import { Icon } from './icon';
import { useServices } from './services';

/** Which sections are folded, and how to fold one. */
export interface IFolds {
  folded: ReadonlySet<string>;
  toggle: (section: string) => void;
}

/** A section that folds under its title; `summary` stays visible when it is folded. */
export function Section(props: {
  id: string;
  title: string;
  summary: React.ReactNode;
  folds: IFolds;
  /** Folded until it is opened for the first time. */
  closed?: boolean;
  children: React.ReactNode;
}): React.ReactElement {
  const key = props.closed ? `open:${props.id}` : props.id;
  const open = props.folds.folded.has(key) === !!props.closed;
  const body = `aios-section-${props.id}`;
  return (
    <section className="aios-Section" data-section={props.id} aria-label={props.title}>
      <h3>
        <button
          aria-controls={body}
          aria-expanded={open}
          className="aios-Section-title"
          onClick={() => props.folds.toggle(key)}
        >
          <Icon name="caret" className="aios-Caret" />
          <span>{props.title}</span>
          <span className="aios-Section-summary">{props.summary}</span>
        </button>
      </h3>
      <div id={body} hidden={!open}>
        {open && props.children}
      </div>
    </section>
  );
}

/** A section without rows: what it would show, and what to type. */
export function Nothing(props: {
  children: React.ReactNode;
  command?: string;
}): React.ReactElement {
  return (
    <p className="aios-Nothing">
      {props.children}
      {props.command && (
        <>
          {' '}
          <code>{props.command}</code>
        </>
      )}
    </p>
  );
}

/** A small button in a row: an icon with a label for who hovers or listens. */
export function Action(props: {
  label: string;
  onClick: () => void;
  children: React.ReactNode;
  danger?: boolean;
}): React.ReactElement {
  return (
    <button
      aria-label={props.label}
      className={`aios-Action ${props.danger ? 'aios-mod-danger' : ''}`}
      onClick={props.onClick}
      title={props.label}
    >
      {props.children}
    </button>
  );
}

/** What a row is called, as a button that opens its details. */
export function Open(props: {
  kind: 'dataset' | 'device' | 'lease' | 'model' | 'run';
  id: string;
  label: string;
  className: string;
  children: React.ReactNode;
}): React.ReactElement {
  const { commands } = useServices();
  return (
    <button
      aria-label={props.label}
      className={`aios-Open ${props.className}`}
      onClick={() =>
        void commands.execute(CommandIDs.openDetails, { kind: props.kind, id: props.id })
      }
      title={props.label}
    >
      {props.children}
    </button>
  );
}
