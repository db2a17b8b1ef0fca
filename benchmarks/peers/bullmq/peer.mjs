// BullMQ: `node peer.mjs produce|produce-one|work SOCKET`.
//
// Jobs are added in bulk, and the worker runs many at once, as its guide advises for jobs that
// wait more than they compute (Workers: Concurrency). Completed jobs and their results are kept.
// One at a time: `add`, and `waitUntilFinished` on events that have a connection of their own.
import { createInterface } from 'node:readline';
import { setTimeout as sleep } from 'node:timers/promises';
import { Queue, QueueEvents, Worker } from 'bullmq';
import { Redis } from 'ioredis';

const [role, path] = process.argv.slice(2);
const connection = new Redis(path, { maxRetriesPerRequest: null });
const PAYLOAD = 'x'.repeat(256);
const BATCH = 100;
const BATCHES_IN_FLIGHT = 8;
const CONCURRENCY = 100;
const say = (line) => process.stdout.write(JSON.stringify(line) + '\n');
const RESULT_DEADLINE_MS = 60_000;
const now = () => process.hrtime.bigint();
const seconds = (from, to) => Number(to - from) / 1e9;
const lines = createInterface({ input: process.stdin });

if (role === 'produce') {
  const queue = new Queue('bench', { connection });
  await queue.waitUntilReady();
  say({ ready: true });
  for await (const line of lines) {
    const began = performance.now();
    let left = Number(line);
    const add = async () => {
      while (left > 0) {
        const size = Math.min(BATCH, left);
        left -= size;
        await queue.addBulk(
          Array.from({ length: size }, () => ({ name: 'noop', data: { payload: PAYLOAD } })),
        );
      }
    };
    await Promise.all(Array.from({ length: BATCHES_IN_FLIGHT }, add));
    say({ took_s: (performance.now() - began) / 1000 });
  }
  await queue.close();
  connection.disconnect();
} else if (role === 'produce-one') {
  const queue = new Queue('bench', { connection });
  const events = new QueueEvents('bench', { connection: connection.duplicate() });
  // Each job that is waited for is a listener.
  queue.setMaxListeners(0);
  events.setMaxListeners(0);
  await queue.waitUntilReady();
  await events.waitUntilReady();
  const add = (name = 'noop') => queue.add(name, { payload: PAYLOAD });
  const result = (job) => job.waitUntilFinished(events, RESULT_DEADLINE_MS);
  const call = async () => {
    const said = await result(await add());
    if (said !== 'done') throw new Error(`a job's result is ${said}`);
  };
  const timed = async (count, width, what) => {
    const took = [];
    const began = now();
    let left = count;
    const caller = async () => {
      while (left-- > 0) {
        const since = now();
        await what();
        took.push(seconds(since, now()));
      }
    };
    await Promise.all(Array.from({ length: width }, caller));
    const all = seconds(began, now());
    took.sort((one, other) => one - other);
    const at = (fraction) => took[Math.min(Math.floor(count * fraction), count - 1)] * 1e6;
    return { rate: count / all, p50_us: at(0.5), p99_us: at(0.99) };
  };
  const paced = async (count, rate) => {
    const start = performance.now();
    const jobs = [];
    for (let number = 0; number < count; number++) {
      await sleep(Math.max(0, start + (number * 1000) / rate - performance.now()));
      jobs.push([now(), add('stamp')]);
    }
    // Results are read once all are submitted: to read them is not what is measured.
    const took = [];
    for (const [began, added] of jobs) {
      const said = await result(await added);
      took.push(seconds(began, BigInt(said.split(' ')[1])));
    }
    return took;
  };
  say({ ready: true });
  for await (const line of lines) {
    const [verb, count, more] = line.split(' ');
    if (verb === 'submit') say(await timed(Number(count), 1, () => add()));
    else if (verb === 'call') say(await timed(Number(count), Number(more), call));
    else say({ took_s: await paced(Number(count), Number(more)) });
  }
  await queue.close();
  await events.close();
  connection.disconnect();
} else {
  const handle = async (job) => (job.name === 'stamp' ? `done ${now()}` : 'done');
  const worker = new Worker('bench', handle, { connection, concurrency: CONCURRENCY });
  await worker.waitUntilReady();
  say({ ready: true });
  for await (const _ of lines);
  await worker.close();
  connection.disconnect();
}
