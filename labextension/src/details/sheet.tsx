import * as React from 'react';

/** A table that scrolls sideways where it is too wide. */
export function Sheet(props: {
  heads: readonly string[];
  /** Its rows, as `tr`. */
  children: React.ReactNode;
}): React.ReactElement {
  return (
    <div className="aios-Scroll" tabIndex={0}>
      <table className="aios-Versions">
        <thead>
          <tr>
            {props.heads.map((head, at) =>
              head ? (
                <th scope="col" key={at}>
                  {head}
                </th>
              ) : (
                <td key={at} />
              )
            )}
          </tr>
        </thead>
        <tbody>{props.children}</tbody>
      </table>
    </div>
  );
}
