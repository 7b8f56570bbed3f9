import * as React from 'react';

import { useServices } from '../components/services';
import { IPicture, middle, pictureText } from '../picture';

/** Makes what an input takes of a picture, and says how. */
export function Picture(props: {
  picture: IPicture;
  /** What is in the field: the picture is shown as long as it is that. */
  value: string;
  /** Gets the JSON. */
  onText: (text: string) => void;
}): React.ReactElement {
  const { trans } = useServices();
  const id = React.useId();
  const canvas = React.useRef<HTMLCanvasElement>(null);
  const chosen = React.useRef<File | null>(null);
  const [drawn, setDrawn] = React.useState({ name: '', text: '' });
  const [trouble, setTrouble] = React.useState('');
  const { picture, value, onText } = props;
  const take = async (file: File | undefined) => {
    const context = canvas.current?.getContext('2d', { willReadFrequently: true });
    if (!file || !context) {
      return;
    }
    chosen.current = file;
    try {
      const bitmap = await createImageBitmap(file);
      if (chosen.current === file) {
        const text = pictureText(draw(bitmap, context, picture), picture);
        onText(text);
        setDrawn({ name: file.name, text });
        setTrouble('');
      }
    } catch {
      setTrouble(trans.__('The browser cannot read %1 as a picture.', file.name));
    }
  };
  const size = `${picture.width} × ${picture.height}`;
  const how =
    picture.channels === 3
      ? trans.__('in color, %1 to %2', 0, picture.most)
      : trans.__('in gray, %1 (black) to %2', 0, picture.most);
  return (
    <div className="aios-FromPicture">
      <canvas
        aria-label={trans.__('%1, as the model gets it', drawn.name)}
        height={picture.height}
        hidden={!drawn.text || drawn.text !== value}
        ref={canvas}
        role="img"
        width={picture.width}
      />
      <div>
        <label htmlFor={id}>{trans.__('From a picture')}</label>
        <input
          accept="image/*"
          aria-describedby={`${id}-how`}
          id={id}
          onChange={event => void take(event.target.files?.[0])}
          // The same file, chosen again, is to be read again.
          onClick={event => (event.currentTarget.value = '')}
          type="file"
        />
        <p className="aios-Muted" id={`${id}-how`}>
          {trans.__(
            'Its middle, scaled to %1, %2; what is transparent is white. Nothing else is done to it: a mean, a deviation or an inversion that the model was trained with is yours to apply.',
            size,
            how
          )}
        </p>
        {trouble && (
          <p className="aios-Reason" role="alert">
            {trouble}
          </p>
        )}
      </div>
    </div>
  );
}

/** Draw the middle of a picture at the size of the input; its pixels. */
function draw(
  bitmap: ImageBitmap,
  context: CanvasRenderingContext2D,
  { width, height }: IPicture
): Uint8ClampedArray {
  const part = middle(bitmap, { width, height });
  context.fillStyle = 'white';
  context.fillRect(0, 0, width, height);
  context.imageSmoothingQuality = 'high';
  const { x, y } = part;
  context.drawImage(bitmap, x, y, part.width, part.height, 0, 0, width, height);
  bitmap.close();
  return context.getImageData(0, 0, width, height).data;
}
