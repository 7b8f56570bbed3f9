import { useVirtualizer } from '@tanstack/react-virtual';
import * as React from 'react';

import { useGrowing } from './growing';
import { useServices } from './services';

/** So many rows are simply drawn; of more, only those that are in sight. */
const ALL = 40;
/** So many rows are drawn with each frame at first. */
const AT_ONCE = 6;
/** Frames after which all in sight are drawn. */
const FRAMES = 8;
/** Rows that are drawn above and below what is in sight. */
const OVERSCAN = 3;

interface IRows<Item> {
  items: readonly Item[];
  keyOf: (item: Item) => string;
  /** About how high a row is, in pixels; it is measured when it is drawn. */
  height: (item: Item) => number;
  label?: string;
  children: (item: Item) => React.ReactElement;
}

/** A list of rows, of which only those in sight are drawn when there are many. */
export function Rows<Item>(props: IRows<Item>): React.ReactElement {
  if (props.items.length > ALL) {
    return <Windowed {...props} />;
  }
  return (
    <ul aria-label={props.label} className="aios-Rows">
      {props.items.map(item => (
        <li key={props.keyOf(item)}>{props.children(item)}</li>
      ))}
    </ul>
  );
}

function Windowed<Item>(props: IRows<Item>): React.ReactElement {
  const { scroller } = useServices();
  const { items, keyOf, height } = props;
  const list = React.useRef<HTMLUListElement>(null);
  const frames = useGrowing(FRAMES);
  const [margin, setMargin] = React.useState(0);
  // After each drawing: sections above it may have grown or been folded. The same number again
  // changes nothing.
  // eslint-disable-next-line react-hooks/exhaustive-deps
  React.useLayoutEffect(() => {
    if (list.current) {
      const top =
        list.current.getBoundingClientRect().top - scroller.getBoundingClientRect().top;
      setMargin(Math.round(top + scroller.scrollTop));
    }
  });
  const virtual = useVirtualizer({
    count: items.length,
    getScrollElement: () => scroller,
    getItemKey: index => keyOf(items[index] as Item),
    estimateSize: index => height(items[index] as Item),
    overscan: OVERSCAN,
    scrollMargin: margin,
    useFlushSync: false
  });
  const inSight = virtual.getVirtualItems();
  return (
    <ul
      aria-label={props.label}
      className="aios-Rows aios-mod-windowed"
      ref={list}
      style={{ height: virtual.getTotalSize() }}
    >
      {(frames < FRAMES ? inSight.slice(0, AT_ONCE * frames) : inSight).map(row => (
        <li
          aria-posinset={row.index + 1}
          aria-setsize={items.length}
          data-index={row.index}
          key={row.key}
          ref={virtual.measureElement}
          style={{ transform: `translateY(${row.start - margin}px)` }}
        >
          {props.children(items[row.index] as Item)}
        </li>
      ))}
    </ul>
  );
}
