import { ITensor } from './registry';

/** How an input holds a picture: `order` of its dimensions, and its values up to `most`. */
export interface IPicture {
  order: 'HW' | 'CHW' | 'HWC';
  height: number;
  width: number;
  channels: 1 | 3;
  most: 1 | 255;
}

/** Sides of less are those of something else. */
const SMALLEST = 8;
/** What each color adds to a gray, as for a television. */
const GRAY = [0.299, 0.587, 0.114] as const;

/** How an input holds a picture; null where its shape is none of one. */
export function pictureOf({ datatype, shape }: ITensor): IPicture | null {
  // Of bytes with a sign nobody can say what black is.
  if (
    !/^(FP|U?INT(16|32|64)$|UINT8$)/.test(datatype) ||
    ![-1, 1].includes(shape[0] ?? 0)
  ) {
    return null;
  }
  const most = datatype.startsWith('FP') ? 1 : 255;
  const [a = 0, b = 0, c = 0] = shape.slice(1);
  const sides = (height: number, width: number) => Math.min(height, width) >= SMALLEST;
  const color = (channels: number): channels is 1 | 3 => channels === 1 || channels === 3;
  if (shape.length === 3 && sides(a, b)) {
    return { order: 'HW', height: a, width: b, channels: 1, most };
  }
  if (shape.length === 4 && color(a) && sides(b, c)) {
    return { order: 'CHW', height: b, width: c, channels: a, most };
  }
  if (shape.length === 4 && color(c) && sides(a, b)) {
    return { order: 'HWC', height: a, width: b, channels: c, most };
  }
  return null;
}

/** The part of a picture that fills another shape: its middle, without any distortion. */
export function middle(
  from: { width: number; height: number },
  to: { width: number; height: number }
): { x: number; y: number; width: number; height: number } {
  const scale = Math.min(from.width / to.width, from.height / to.height);
  const [width, height] = [to.width * scale, to.height * scale];
  return { x: (from.width - width) / 2, y: (from.height - height) / 2, width, height };
}

/**
 * A picture as the input takes it: JSON with a line for each row of it.
 *
 * @param pixels Red, green, blue and what covers, of each pixel, row by row, as a canvas gives them.
 */
export function pictureText(pixels: Uint8ClampedArray, picture: IPicture): string {
  const { order, height, width, channels, most } = picture;
  const value = (row: number, column: number, channel: number) => {
    const at = 4 * (row * width + column);
    const seen =
      channels === 3
        ? (pixels[at + channel] ?? 0)
        : GRAY.reduce((sum, part, of) => sum + part * (pixels[at + of] ?? 0), 0);
    // Four digits are more than a picture has.
    return most === 1 ? Math.round((1e4 * seen) / 255) / 1e4 : Math.round(seen);
  };
  const rows = (cell: (row: number, column: number) => unknown) =>
    list(
      count(height).map(row => JSON.stringify(count(width).map(at => cell(row, at)))),
      '\n '
    );
  switch (order) {
    case 'HW':
      return rows((row, at) => value(row, at, 0));
    case 'HWC':
      return rows((row, at) => count(channels).map(channel => value(row, at, channel)));
    case 'CHW':
      return list(
        count(channels).map(channel => rows((row, at) => value(row, at, channel))),
        '\n'
      );
  }
}

function list(parts: string[], between: string): string {
  return `[${between}${parts.join(`,${between}`)}\n]`;
}

function count(length: number): number[] {
  return Array.from({ length }, (_, at) => at);
}
