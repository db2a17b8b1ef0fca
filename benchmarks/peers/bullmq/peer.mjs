// BullMQ: `node peer.mjs produce|work SOCKET`.
//
// Jobs are added in bulk, and the worker runs many at once, as its guide advises for jobs that
// wait more than they compute (Workers: Concurrency). Completed jobs and their results are kept.
import { createInterface } from 'node:readline';
import { Queue, Worker } from 'bullmq';
import { Redis } from 'ioredis';

const [role, path] = process.argv.slice(2);
const connection = new Redis(path, { maxRetriesPerRequest: null });
const PAYLOAD = 'x'.repeat(256);
const BATCH = 100;
const BATCHES_IN_FLIGHT = 8;
const CONCURRENCY = 100;
const say = (line) => process.stdout.write(JSON.stringify(line) + '\n');
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
} else {
  const worker = new Worker('bench', async () => 'done', { connection, concurrency: CONCURRENCY });
  await worker.waitUntilReady();
  say({ ready: true });
  for await (const _ of lines);
  await worker.close();
  connection.disconnect();
}
