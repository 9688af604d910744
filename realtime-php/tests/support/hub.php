<?php

/**
 * The hub of `Tests\HubProcess`: starts with the configuration in its argument, then gives connections the users that
 * lines on its standard input name, until SIGTERM.
 */

declare(strict_types=1);

$hub = Realtime\start(json_decode($argv[1], true, flags: JSON_THROW_ON_ERROR));
$stop = false;
pcntl_async_signals(true);
pcntl_signal(SIGTERM, function () use (&$stop) {
    $stop = true;
});
echo "ready {$hub->url}\n";

while (!$stop) {
    $read = [STDIN];
    $none = null;
    if (!@stream_select($read, $none, $none, 1)) {
        continue;
    }
    $line = fgets(STDIN);
    if ($line === false) {
        break;
    }
    [$call, $socket, $user, $info] = json_decode($line, true, flags: JSON_THROW_ON_ERROR);
    try {
        echo "answer $call " . json_encode($hub->setUser($socket, $user, $info)) . "\n";
    } catch (Throwable $e) {
        echo "answer $call " . $e::class . " {$e->getMessage()}\n";
    }
}
exit($hub->stop(2000) ? 0 : 1);
