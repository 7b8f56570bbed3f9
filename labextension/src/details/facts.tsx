import * as React from 'react';

/** Names and values, those that are empty left out. */
export function Facts(props: {
  facts: readonly (readonly [string, React.ReactNode])[];
}): React.ReactElement {
  return (
    <dl className="aios-Table">
      {props.facts
        .filter(([, value]) => value !== '' && value !== null && value !== undefined)
        .map(([name, value]) => (
          <div key={name}>
            <dt>{name}</dt>
            <dd>{value}</dd>
          </div>
        ))}
    </dl>
  );
}

/** What is shown where the subject is no longer there. */
export function Gone(props: { children: React.ReactNode }): React.ReactElement {
  return (
    <p className="aios-Gone" role="status">
      {props.children}
    </p>
  );
}
