// The default run of `tersor loadtest URL`, for k6 (https://k6.io): what both have in common, and what not, is said in
// load-test.md beside this file.
//
//   k6 run -e URL=http://localhost:8000/ loadtest.js
//   k6 run -e URL=http://localhost:8000/predict -e BODY=$PWD/request.json -e RATE=100 loadtest.js
//
// A path in BODY that is not whole begins at this script's folder: so k6 has it.
//
// Limits are those of `--max-p99` and `--min-goodput`: -e MAX_P99=200, and -e WITHIN=100 -e MIN_GOODPUT=0.99.

import http from 'k6/http';
import { Rate } from 'k6/metrics';

const url = __ENV.URL;
if (!url) {
  throw new Error('name the server: -e URL=http://localhost:8000/');
}
const body = __ENV.BODY ? open(__ENV.BODY) : null;
const connections = Number(__ENV.CONNECTIONS || 512);
const seconds = Number(__ENV.SECONDS || 30);
const timeout = Number(__ENV.TIMEOUT || 10);
const within = Number(__ENV.WITHIN || timeout * 1000);

const goodput = new Rate('goodput');

const thresholds = {
  // A request that k6 had no user for was never sent: the result is invalid, not the server slow.
  dropped_iterations: ['count==0'],
};
if (__ENV.MAX_P99) {
  thresholds.http_req_duration = [`p(99)<=${Number(__ENV.MAX_P99)}`];
}
if (__ENV.MIN_GOODPUT) {
  thresholds.goodput = [`rate>=${Number(__ENV.MIN_GOODPUT)}`];
}

export const options = {
  scenarios: {
    open_loop: {
      executor: 'constant-arrival-rate', // begins requests on time, whatever became of those before
      rate: Number(__ENV.RATE || 50),
      timeUnit: '1s',
      duration: `${seconds}s`,
      preAllocatedVUs: connections, // a user has one request at a time; all are made before the clock runs
      maxVUs: connections,
      gracefulStop: `${timeout}s`, // the last answers are waited for
    },
  },
  discardResponseBodies: true,
  maxRedirects: 0, // a redirect is an answer with another status than 2xx
  summaryTrendStats: ['p(50)', 'p(90)', 'p(99)', 'max'],
  thresholds,
};

export default function () {
  const settings = { timeout: `${timeout}s` };
  if (body !== null) {
    settings.headers = { 'Content-Type': 'application/json' };
  }
  const answer = body === null ? http.get(url, settings) : http.post(url, body, settings);
  goodput.add(answer.status >= 200 && answer.status < 300 && answer.timings.duration <= within);
}
