<?php

declare(strict_types=1);

require __DIR__ . '/../support/harness.php';

use Realtime\Exception\ConfigError;
use Tests\Client;

use function Tests\{check, contains, php, same, test, throws};

const SERVE = "\$status = Realtime\\serve(['listen' => '127.0.0.1:0', 'shards' => 2]); echo \"returned \$status\";";

foreach (['SIGTERM' => SIGTERM, 'SIGINT' => SIGINT] as $name => $signal) {
    test("serve() returns after $name, once clients have been told", function () use ($name, $signal) {
        $process = php(SERVE);
        $client = Client::subscribed($process->expect('~ws://(\S+)/ws~')[1], 'a');
        $process->signal($signal);
        same(1001, $client->closeCode());
        same('returned 0', $process->output());
        contains("realtime: $name, closing connections\n", $process->errors());
        contains("realtime: stopped\n", $process->errors());
    });
}

test('handlers that pcntl has do not run while serve() waits, and work again afterwards', function () {
    $code = <<<'PHP'
        pcntl_async_signals(true);
        pcntl_signal(SIGTERM, function () { echo 'handler '; });
        PHP . SERVE . <<<'PHP'
        posix_kill(getmypid(), SIGTERM);
        PHP;
    $process = php($code);
    $process->expect('/listening/');
    $process->signal(SIGTERM);
    same('returned 0handler ', $process->output());
});

test('a second signal during the drain does not kill the script', function () {
    $process = php(SERVE);
    // A client that never answers the close keeps the drain busy.
    $client = Client::subscribed($process->expect('~ws://(\S+)/ws~')[1], 'a');
    $process->signal(SIGINT);
    $process->expect('/closing connections/');
    $process->signal(SIGINT);
    $process->signal(SIGTERM);
    $process->expect('/returned [01]/');
    same(0, $process->wait());
});

test('serve() takes over the hub that runs, unless it is asked for another one', function () {
    $code = <<<'PHP'
        $hub = Realtime\start(['listen' => '127.0.0.1:0']);
        throws(Realtime\Exception\ConfigError::class, 'another configuration', fn () => Realtime\serve(['listen' => '127.0.0.1:1']));
        echo "ready\n";
        echo 'returned ', Realtime\serve(), ' ', json_encode($hub->isRunning());
        PHP;
    $process = php($code);
    $process->expect('/ready/');
    $process->signal(SIGTERM);
    contains('returned 0 false', $process->output());
});

test('after a failed start the signals are as before', function () {
    $code = <<<'PHP'
        throws(Realtime\Exception\ConfigError::class, 'lissten', fn () => Realtime\serve(['lissten' => 1]));
        echo 'alive';
        posix_kill(getmypid(), SIGTERM);
        sleep(20);
        PHP;
    $process = php($code);
    same([128 + SIGTERM, 'alive'], [$process->wait(), $process->written()]);
});

test('hub threads block every signal: PHP\'s handlers run on PHP\'s thread', function () {
    $hub = Realtime\start(['listen' => '127.0.0.1:0', 'shards' => 2]);
    foreach (array_diff(scandir('/proc/self/task'), ['.', '..', (string) getmypid()]) as $thread) {
        preg_match('/^SigBlk:\s*(\w+)$/m', file_get_contents("/proc/self/task/$thread/status"), $match);
        // Everything but KILL and STOP, and the two (32, 33) that the C library keeps for itself.
        check(preg_match('/^fffffff[ef][7f]ffbfeff$/', $match[1]) === 1, $match[1]);
    }
    $seen = 0;
    pcntl_async_signals(true);
    pcntl_signal(SIGUSR1, function () use (&$seen) {
        $seen++;
    });
    for ($i = 0; $i < 100; $i++) {
        posix_kill(getmypid(), SIGUSR1);
        broadcast('a', 'x');
    }
    same(100, $seen);
    preg_match('/^SigBlk:\s*(\w+)$/m', file_get_contents('/proc/self/status'), $match);
    same('0000000000000000', $match[1]);
    $hub->stop();
});
