"""Send with the standard library: ten threads, a connection each."""

import gc
import json
import smtplib
import sys
import threading
import time
from pathlib import Path

gc.set_threshold(50_000)  # as the engine's command line does; the same in every sender here
port, count, content = int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[4]).read_bytes()
THREADS = 10
delivered = []


def send(share):
    with smtplib.SMTP("127.0.0.1", port, local_hostname="client.bench.test") as client:
        for _ in range(share):
            client.sendmail("from@bench.test", ["to@bench.test"], content)
    delivered.append(share)


shares = [count // THREADS + (index < count % THREADS) for index in range(THREADS)]
started, cpu = time.perf_counter(), time.process_time()
threads = [threading.Thread(target=send, args=(share,)) for share in shares]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
print(
    json.dumps(
        {
            "delivered": sum(delivered),
            "seconds": time.perf_counter() - started,
            "cpu": time.process_time() - cpu,
        }
    )
)
