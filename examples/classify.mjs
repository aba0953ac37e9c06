// Classify a WAV file with onnxruntime, in Node.js or, without the first lines of main, in a browser.
//
//     node examples/classify.mjs outputs/classify/model.onnx model_cards/esc10 outputs/classify/recording.wav
//
// The ONNX file takes waveforms (scenes export --waveform); labels and sampling rate are those of the model folder.

import { readFile } from "node:fs/promises";
import { join } from "node:path";
import * as ort from "onnxruntime-web";

/** Return the rate and the samples of a WAV file (16, 24 or 32 bits, or 32-bit float), with its channels averaged. */
export function readWav(bytes) {
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
  const name = (offset) => String.fromCharCode(...bytes.subarray(offset, offset + 4));
  if (name(0) !== "RIFF" || name(8) !== "WAVE") throw new Error("This is not a WAV file.");
  let format, channels, rate, bits;
  for (let offset = 12; offset + 8 <= view.byteLength; ) {
    const start = offset + 8;
    const size = view.getUint32(offset + 4, true);
    if (name(offset) === "fmt ") {
      [format, channels, rate, bits] = [
        view.getUint16(start, true), view.getUint16(start + 2, true),
        view.getUint32(start + 4, true), view.getUint16(start + 14, true),
      ];
      if (format === 0xfffe) format = view.getUint16(start + 24, true); // WAVE_FORMAT_EXTENSIBLE
    } else if (name(offset) === "data") {
      const read = {
        "1/16": (at) => view.getInt16(at, true) / 2 ** 15,
        "1/24": (at) => (view.getUint16(at, true) + view.getInt8(at + 2) * 2 ** 16) / 2 ** 23,
        "1/32": (at) => view.getInt32(at, true) / 2 ** 31,
        "3/32": (at) => view.getFloat32(at, true),
      }[`${format}/${bits}`];
      if (!read) throw new Error(`WAV format ${format} with ${bits} bits is not supported: convert the file.`);
      const frame = (channels * bits) / 8;
      const samples = new Float32Array(Math.floor(Math.min(size, view.byteLength - start) / frame));
      for (let i = 0; i < samples.length; i++)
        for (let c = 0; c < channels; c++) samples[i] += read(start + i * frame + (c * bits) / 8) / channels;
      return { rate, samples };
    }
    offset = start + size + (size % 2);
  }
  throw new Error("The WAV file has no samples.");
}

/** Cut samples into windows, end to end; the last one ends with the samples, and short ones are repeated. */
export function cut(samples, length, hop) {
  if (samples.length < length) return { count: 1, windows: samples.length ?
    Float32Array.from({ length }, (_, i) => samples[i % samples.length]) : new Float32Array(length) };
  const starts = [];
  for (let start = 0; start + length <= samples.length; start += length) starts.push(start);
  if (samples.length % length >= hop) starts.push(samples.length - length);
  const windows = new Float32Array(starts.length * length);
  starts.forEach((start, i) => windows.set(samples.subarray(start, start + length), i * length));
  return { count: starts.length, windows };
}

export async function main([onnxFile, modelFolder, recording]) {
  const json = async (name) => JSON.parse(await readFile(join(modelFolder, name), "utf8"));
  const labels = (await json("config.json")).id2label;
  const frontEnd = await json("preprocessor_config.json");
  const { rate, samples } = readWav(await readFile(recording));
  if (rate !== frontEnd.sampling_rate) throw new Error(`Resample ${recording} to ${frontEnd.sampling_rate} Hz first.`);
  const { count, windows } = cut(samples, Math.round(rate * frontEnd.window_length_s), frontEnd.hop_length);

  const session = await ort.InferenceSession.create(await readFile(onnxFile));
  const { logits } = await session.run({ waveform: new ort.Tensor("float32", windows, [count, windows.length / count]) });
  const classes = logits.dims[1];
  const mean = Array.from({ length: classes }, (_, c) =>
    logits.data.reduce((sum, value, i) => sum + (i % classes === c ? value / count : 0), 0));
  const exponentials = mean.map((value) => Math.exp(value - Math.max(...mean)));
  const total = exponentials.reduce((a, b) => a + b);
  const found = exponentials.map((value, c) => ({ label: labels[c], score: value / total }));
  console.log(JSON.stringify(found.sort((a, b) => b.score - a.score), null, 1));
}

await main(process.argv.slice(2));
