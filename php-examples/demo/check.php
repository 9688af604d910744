<?php

declare(strict_types=1);

/*
 * Does the demo show live values? Starts it on free ports, opens its page in headless Chromium and looks.
 *
 *     php check.php SCREENSHOT.png [--seconds=N] [--dark] -- php -d extension=… poller.php
 *
 * Chromium is driven through the DevTools protocol on a pipe. `--seconds` lets readings gather before the picture is
 * taken. Closes with "N passed, N failed"; the exit status is 0 only if all passed.
 */

require __DIR__ . '/Browser.php';

/** Seconds before something that does not come counts as failed. */
const DEADLINE = 60;

/**
 * A port that nobody has, below those that the kernel hands out (from 32768 on): nobody else has it when the demo
 * listens, or listens again.
 */
function free_port(): string
{
    do {
        $port = (string) random_int(20_000, 32_767);
        $listener = @stream_socket_server("tcp://127.0.0.1:$port");
    } while ($listener === false);
    fclose($listener);

    return $port;
}

/** The demo itself: its process and the page's address that it printed. */
final class Demo
{
    public readonly string $page;
    private Child $process;

    /** @param list<string> $command */
    public function __construct(array $command, string $hubPort, string $pagePort, string $socket)
    {
        $this->process = new Child($command, [1 => ['pipe', 'w']], [
            'HUB_PORT' => $hubPort, 'PAGE_PORT' => $pagePort, 'ADDRESS' => '127.0.0.1', 'REALTIME_SOCKET' => $socket,
        ]);
        $deadline = microtime(true) + DEADLINE;
        do {
            $line = $this->process->read(1, "\n", $deadline) ?? throw new RuntimeException('the demo did not start');
        } while (!preg_match('#^\s+Open\s+(\S+)#', $line, $match));
        $this->page = $match[1];
    }

    public function stop(): int
    {
        return $this->process->stop(DEADLINE);
    }
}

$passed = $failed = 0;
$check = function (string $what, bool $ok, string $seen = '') use (&$passed, &$failed): bool {
    $ok ? $passed++ : $failed++;
    echo $ok ? '  ok      ' : '  FAILED  ', $what, $seen === '' ? '' : " ($seen)", "\n";

    return $ok;
};

$split = array_search('--', $argv, true) ?: exit("usage: check.php SCREENSHOT.png [--seconds=N] [--dark] -- COMMAND\n");
[$arguments, $command] = [array_slice($argv, 1, $split - 1), array_slice($argv, $split + 1)];
$picture = $arguments[0];
$dark = in_array('--dark', $arguments, true);
$seconds = (int) substr(current(preg_grep('/^--seconds=/', $arguments)) ?: '--seconds=0', strlen('--seconds='));

/** Devices whose values have changed at least five times. */
$live = fn (?array $report): array => array_column(
    array_filter($report['devices'] ?? [], fn (array $device): bool => $device['received'] >= 5 && $device['changes'] >= 5),
    'channel',
);

[$hubPort, $pagePort] = [free_port(), free_port()];
$socket = sys_get_temp_dir() . '/demo-check-' . bin2hex(random_bytes(6)) . '.sock';
try {
    $start = fn (): Demo => new Demo($command, $hubPort, $pagePort, $socket);
    $demo = $start();
    $browser = new Browser(Browser::program());
    $browser->open($demo->page, $dark);

    $report = $browser->until('window.demo?.report()', fn ($report) => ($report['state'] ?? '') === 'live', DEADLINE);
    $check('the page connects to the hub', $report !== null);

    $report = $browser->until('window.demo?.report()', fn ($report) => count($live($report)) >= 5, DEADLINE);
    $channels = $live($report ?? $browser->evaluate('window.demo?.report()'));
    $check('five devices or more show live, changing values', count($channels) >= 5, count($channels) . ': ' . implode(', ', $channels));

    $painted = $browser->until(<<<'JS'
        (() => {
          const canvas = document.querySelector('#hero canvas');
          const pixels = canvas.getContext('2d').getImageData(0, 0, canvas.width, canvas.height).data;
          // Both lines: where the second adds next to nothing it lies on the first.
          const colours = ['series-1', 'series-2'].map((name) => theme[name].match(/[0-9a-f]{2}/gi).map((hex) => parseInt(hex, 16)));
          let count = 0;
          for (let i = 0; i < pixels.length; i += 4) count += colours.some(([r, g, b]) => pixels[i] === r && pixels[i + 1] === g && pixels[i + 2] === b);
          return count;
        })()
        JS, fn ($count) => $count > 100, DEADLINE);
    $check('the large chart is drawn', $painted !== null, (int) $painted . ' pixels of its lines');

    $enough = 10 * $seconds;
    $browser->until('window.demo.report().devices[0].received', fn ($count) => $count >= $enough, $seconds + DEADLINE);
    @mkdir(dirname($picture), recursive: true);
    $png = $browser->screenshot();
    file_put_contents($picture, $png);
    $check('a screenshot is saved', str_starts_with($png, "\x89PNG") && strlen($png) > 10_000, $picture);

    // Not the cores: those of a busy machine stay at 100 %. What a call costs is never the same for long.
    $first = $browser->evaluate("tiles.get('device.broadcast').root.click(), document.querySelector('#hero .value').textContent");
    $later = $browser->until("document.querySelector('#hero .value').textContent", fn ($text) => $text !== $first, DEADLINE);
    $check('another device that is clicked takes its place, and its number moves', $later !== null, "$first, then $later");

    $status = $demo->stop();
    $check('the demo ends cleanly when it is told to', $status === 0, "exit status $status");
    $report = $browser->until('window.demo.report()', fn ($report) => $report['state'] === 'reconnecting', DEADLINE);
    $check('the page says that the hub has gone', $report !== null);

    $seen = $browser->evaluate('window.demo.report().messages');
    $again = $start();
    $report = $browser->until('window.demo.report()', fn ($report) => $report['state'] === 'live' && $report['messages'] > $seen, DEADLINE);
    $check('the page comes back when the hub does', $report !== null);

    $check('the page has no complaint', $browser->complaints === [], implode('; ', $browser->complaints));
    $again->stop();
} catch (Throwable $problem) {
    $check($problem->getMessage(), false);
} finally {
    isset($browser) && $browser->close();
    array_map(unlink(...), glob("$socket*"));
}

echo "$passed passed, $failed failed\n";
exit($failed ? 1 : 0);
