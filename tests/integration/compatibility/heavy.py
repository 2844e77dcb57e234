"""Programs of the image with compilers and libraries, and what they print. None may notice that it is in a sandbox."""

from __future__ import annotations

from .programs import Program

PYTHON = {
    "numpy multiplies, solves and transforms": Program(
        """
import numpy as np
a = np.arange(9.0).reshape(3, 3) + np.eye(3)
print(np.allclose(np.linalg.solve(a, a @ [1, 2, 3]), [1, 2, 3]), np.fft.fft(np.ones(4)).real.tolist())
print(np.random.default_rng(7).integers(0, 10, 4).tolist(), np.linalg.eigvalsh(np.diag([3.0, 1.0, 2.0])).tolist())
""",
        "True [4.0, 0.0, 0.0, 0.0]\n[9, 6, 6, 8] [1.0, 2.0, 3.0]\n",
    ),
    "an array of numpy in a file that is mapped into memory": Program(
        """
import numpy as np
np.save('numbers.npy', np.arange(1_000_000, dtype='int64'))
print(int(np.load('numbers.npy', mmap_mode='r')[-3:].sum()))
""",
        "2999994\n",
    ),
    "pandas groups, joins and writes": Program(
        """
import pandas as pd
sales = pd.DataFrame({'town': ['a', 'b', 'a'], 'sum': [1, 2, 3], 'day': pd.date_range('2024-02-28', periods=3)})
sales.to_csv('sales.csv', index=False)
again = pd.read_csv('sales.csv', parse_dates=['day'])
print(again.groupby('town')['sum'].sum().to_dict(), str(again['day'].max().date()))
print(again.merge(pd.DataFrame({'town': ['a'], 'who': ['x']}), how='left')['who'].fillna('-').tolist())
""",
        "{'a': 4, 'b': 2} 2024-03-01\n['x', '-', 'x']\n",
    ),
    "processes share an array of numpy": Program(
        """
import multiprocessing
import numpy as np
from multiprocessing import shared_memory
def fill(name, part):
    memory = shared_memory.SharedMemory(name)
    np.ndarray((4, 1000), dtype='int64', buffer=memory.buf)[part] = part
    memory.close()
memory = shared_memory.SharedMemory(create=True, size=4 * 1000 * 8)
fork = multiprocessing.get_context('fork')
workers = [fork.Process(target=fill, args=(memory.name, part)) for part in range(4)]
for worker in workers: worker.start()
for worker in workers: worker.join()
print(int(np.ndarray((4, 1000), dtype='int64', buffer=memory.buf).sum()), [w.exitcode for w in workers])
memory.close()
memory.unlink()
""",
        "6000 [0, 0, 0, 0]\n",
    ),
    "a compiled library, called": Program(
        """
import ctypes, pathlib, subprocess
pathlib.Path('twice.c').write_text('int twice(int n) { return 2 * n; }')
subprocess.run(['gcc', '-shared', '-fPIC', '-O2', '-o', 'twice.so', 'twice.c'], check=True)
print(ctypes.CDLL('./twice.so').twice(21))
""",
        "42\n",
    ),
}

FIGURE = """
import matplotlib
matplotlib.use('Agg')
import matplotlib.pyplot as plt
figure, axes = plt.subplots(figsize=(2, 1), dpi=100)
axes.plot([1, 4, 9], label='squares')
axes.set_title('numbers')
axes.legend()
figure.savefig('figure.png')
print('saved')
"""

SHELL = {
    "gcc compiles and links, and the program runs": Program(
        """cat > sums.c <<'END'
#include <math.h>
#include <pthread.h>
#include <stdio.h>
static long sums[4];
static void *work(void *part) {
    for (long n = 0; n < 1000; n++) sums[(long)part] += n;
    return NULL;
}
int main(void) {
    pthread_t threads[4];
    for (long n = 0; n < 4; n++) pthread_create(&threads[n], NULL, work, (void *)n);
    for (long n = 0; n < 4; n++) pthread_join(threads[n], NULL);
    printf("%ld %.0f\\n", sums[0] + sums[1] + sums[2] + sums[3], sqrt(81));
    return 3;
}
END
gcc -O2 -Wall -Werror -pthread -o sums sums.c -lm && ./sums; echo $?
""",
        "1998000 9\n3\n",
    ),
    "a program in /tmp, linked statically": Program(
        "cd /tmp && echo 'int main(void) { return 5; }' > five.c && gcc -static -o five five.c; ./five; echo $?", "5\n"
    ),
    "a crash in compiled code": Program(
        "echo 'int main(void) { return *(volatile int *)0; }' > crash.c; gcc -o crash crash.c; "
        "sh -c ./crash 2>/dev/null; echo $?",
        "139\n",
    ),
    "node with promises, timers and files": Program(
        """cat > main.js <<'END'
const fs = require('fs/promises');
(async () => {
  await fs.writeFile('words.json', JSON.stringify({ words: ['b', 'a'] }));
  const { words } = JSON.parse(await fs.readFile('words.json', 'utf8'));
  await new Promise((done) => setTimeout(done, 1));
  console.log(words.sort().join(), require('crypto').createHash('sha256').update('x').digest('hex').slice(0, 8));
})();
END
node main.js
""",
        "a,b 2d711642\n",
    ),
    "node with worker threads and a child process": Program(
        """cat > workers.js <<'END'
const { Worker, isMainThread, parentPort } = require('worker_threads');
if (!isMainThread) {
  parentPort.postMessage(21 * 2);
} else {
  new Worker(__filename).on('message', (n) => {
    console.log(n, require('child_process').execFileSync('echo', ['child']).toString().trim());
  });
}
END
node workers.js
""",
        "42 child\n",
    ),
    "node serves itself": Program(
        """node -e "
const http = require('http');
const server = http.createServer((_, answer) => answer.end('served')).listen(0, '127.0.0.1', () =>
  http.get({ port: server.address().port, host: '127.0.0.1' }, (got) =>
    got.on('data', (data) => console.log(data.toString())).on('end', () => server.close())));
"
""",
        "served\n",
    ),
}
