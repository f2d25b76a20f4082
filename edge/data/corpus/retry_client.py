"""A JSON client for internal services: retries what is safe to retry and gives up in time.

    client = JsonClient("https://stock.internal/api/", token=os.environ["STOCK_TOKEN"])
    level = client.get("items/4711/level", params={"site": "north"})
"""

import json
import logging
import random
import time
import urllib.error
import urllib.parse
import urllib.request
from dataclasses import dataclass
from email.utils import parsedate_to_datetime

logger = logging.getLogger(__name__)

RETRIED_STATUS = frozenset({408, 425, 429, 500, 502, 503, 504})
SAFE_METHODS = frozenset({"GET", "HEAD", "PUT", "DELETE"})
LARGEST_BODY = 10 * 1024 * 1024


class ServiceError(Exception):
    """The service answered, and the answer was an error."""

    retry_after = None

    def __init__(self, status, url, body):
        self.status = status
        self.url = url
        self.body = body
        super().__init__("%s answered %d: %s" % (url, status, body[:200] or "(nothing)"))


class ServiceUnavailable(Exception):
    """No usable answer within the deadline or the number of attempts."""


@dataclass
class RetryPolicy:
    attempts: int = 4
    first_pause: float = 0.25
    longest_pause: float = 8.0
    deadline: float = 30.0

    def pause_before(self, attempt, rng=random):
        """Seconds to wait before the given attempt (2 is the first retry), with full jitter."""
        ceiling = min(self.longest_pause, self.first_pause * 2 ** (attempt - 2))
        return rng.uniform(0, ceiling)


class CircuitBreaker:
    """Stops calling a service that keeps failing, and lets a single call through now and then."""

    def __init__(self, threshold=5, cool_down=20.0, clock=time.monotonic):
        self.threshold = threshold
        self.cool_down = cool_down
        self.clock = clock
        self.failures = 0
        self.opened_at = None

    def allows(self):
        if self.opened_at is None:
            return True
        if self.clock() - self.opened_at < self.cool_down:
            return False
        self.opened_at = self.clock()  # one probe per cool-down
        return True

    def succeeded(self):
        self.failures = 0
        self.opened_at = None

    def failed(self):
        self.failures += 1
        if self.failures >= self.threshold and self.opened_at is None:
            logger.warning("circuit opened after %d failures", self.failures)
            self.opened_at = self.clock()


def retry_after(headers, now=time.time):
    """Seconds the server asks us to wait, from either form of Retry-After; None if it does not."""
    value = (headers.get("Retry-After") or "").strip()
    if not value:
        return None
    if value.isdigit():
        return float(value)
    try:
        moment = parsedate_to_datetime(value)
    except (TypeError, ValueError):
        return None
    return max(0.0, moment.timestamp() - now())


class JsonClient:
    def __init__(self, base_url, token=None, policy=None, timeout=5.0, opener=None,
                 sleep=time.sleep, clock=time.monotonic):
        if not base_url.endswith("/"):
            base_url += "/"
        self.base_url = base_url
        self.token = token
        self.policy = policy or RetryPolicy()
        self.timeout = timeout
        self.breaker = CircuitBreaker(clock=clock)
        self._open = (opener or urllib.request.build_opener()).open
        self._sleep = sleep
        self._clock = clock

    def get(self, path, params=None):
        return self.call("GET", path, params=params)

    def put(self, path, body):
        return self.call("PUT", path, body=body)

    def delete(self, path):
        return self.call("DELETE", path)

    def post(self, path, body, idempotency_key=None):
        """Sends once, unless a key tells the server to ignore a second copy."""
        headers = {"Idempotency-Key": idempotency_key} if idempotency_key else {}
        return self.call("POST", path, body=body, headers=headers)

    def call(self, method, path, params=None, body=None, headers=None):
        request = self._request(method, path, params, body, headers or {})
        repeatable = method in SAFE_METHODS or request.has_header("Idempotency-key")
        attempts = self.policy.attempts if repeatable else 1
        give_up_at = self._clock() + self.policy.deadline
        wait = None
        problem = None

        for attempt in range(1, attempts + 1):
            if attempt > 1:
                pause = self.policy.pause_before(attempt) if wait is None else wait
                if self._clock() + pause > give_up_at:
                    break
                logger.info("%s %s: %s; attempt %d in %.2f s",
                            method, request.full_url, problem, attempt, pause)
                self._sleep(pause)
            if not self.breaker.allows():
                raise ServiceUnavailable("%s is not called, its circuit is open" % self.base_url)
            try:
                answer = self._send(request, give_up_at)
            except ServiceError as error:
                if error.status not in RETRIED_STATUS:
                    self.breaker.succeeded()  # it works, we asked for the wrong thing
                    raise
                self.breaker.failed()
                problem, wait = error, error.retry_after
            except OSError as error:
                self.breaker.failed()
                problem, wait = error, None
            else:
                self.breaker.succeeded()
                return answer
        raise ServiceUnavailable("%s %s: gave up: %s" % (method, request.full_url, problem)) from problem

    def _request(self, method, path, params, body, headers):
        url = urllib.parse.urljoin(self.base_url, path.lstrip("/"))
        if params:
            known = {key: value for key, value in params.items() if value is not None}
            url += "?" + urllib.parse.urlencode(known, doseq=True)
        data = None
        if body is not None:
            data = json.dumps(body, ensure_ascii=False).encode("utf-8")
            headers = {**headers, "Content-Type": "application/json; charset=utf-8"}
        if self.token:
            headers = {**headers, "Authorization": "Bearer " + self.token}
        headers = {"Accept": "application/json", **headers}
        return urllib.request.Request(url, data=data, headers=headers, method=method)

    def _send(self, request, give_up_at):
        timeout = max(0.1, min(self.timeout, give_up_at - self._clock()))
        try:
            with self._open(request, timeout=timeout) as response:
                return self._decode(response, request)
        except urllib.error.HTTPError as error:
            with error:
                text = error.read(2000).decode("utf-8", errors="replace")
            failure = ServiceError(error.code, request.full_url, text)
            failure.retry_after = retry_after(error.headers)
            raise failure from None

    def _decode(self, response, request):
        content = response.read(LARGEST_BODY + 1)
        if len(content) > LARGEST_BODY:
            raise ServiceUnavailable("%s sent more than %d bytes" % (request.full_url, LARGEST_BODY))
        if not content:
            return None
        try:
            return json.loads(content)
        except ValueError:
            raise ServiceError(response.status, request.full_url, "no JSON: %r" % content[:80]) from None
