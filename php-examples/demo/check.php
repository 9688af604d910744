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

/** The demo itself: its process and the addresses that it printed. */
final class Demo
{
    public readonly string $page;
    public readonly string $pagePort;
    public readonly string $hubPort;
    private Child $process;

    /** @param list<string> $command */
    public function __construct(array $command, string $port = '0', string $pagePort = '0')
    {
        $this->process = new Child($command, [1 => ['pipe', 'w'], 2 => STDERR], [
            'HUB_PORT' => $port, 'PAGE_PORT' => $pagePort, 'ADDRESS' => '127.0.0.1', 'REALTIME_SOCKET' => sys_get_temp_dir() . '/demo-check-' . getmypid() . '.sock',
        ]);
        $deadline = microtime(true) + 15;
        $found = [];
        while (count($found) < 2) {
            $line = $this->process->read(1, "\n", $deadline) ?? throw new RuntimeException('the demo did not start');
            if (preg_match('#^\s+(Open|hub)\s+(\w+://[\d.]+:(\d+)/\S*)#', $line, $match)) {
                $found[$match[1]] = $match;
            }
        }
        [, , $this->page, $this->pagePort] = $found['Open'];
        $this->hubPort = $found['hub'][3];
    }

    public function stop(): int
    {
        return $this->process->stop();
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

try {
    $demo = new Demo($command);
    $browser = new Browser(Browser::program());
    $browser->open($demo->page, $dark);

    $report = $browser->until('window.demo?.report()', fn ($report) => ($report['state'] ?? '') === 'live', 10);
    $check('the page connects to the hub', $report !== null);

    $report = $browser->until('window.demo?.report()', fn ($report) => count($live($report)) >= 5, 15);
    $channels = $live($report ?? $browser->evaluate('window.demo?.report()'));
    $check('five devices or more show live, changing values', count($channels) >= 5, count($channels) . ': ' . implode(', ', $channels));

    $painted = $browser->until(<<<'JS'
        (() => {
          const canvas = document.querySelector('#hero canvas');
          const pixels = canvas.getContext('2d').getImageData(0, 0, canvas.width, canvas.height).data;
          const [r, g, b] = theme['series-1'].match(/[0-9a-f]{2}/gi).map((hex) => parseInt(hex, 16));
          let count = 0;
          for (let i = 0; i < pixels.length; i += 4) count += pixels[i] === r && pixels[i + 1] === g && pixels[i + 2] === b;
          return count;
        })()
        JS, fn ($count) => $count > 100, 10);
    $check('the large chart is drawn', $painted !== null, (int) $painted . ' pixels of its line');

    $first = $browser->evaluate("document.querySelector('#hero .value').textContent");
    $later = $browser->until("document.querySelector('#hero .value').textContent", fn ($text) => $text !== $first, 10);
    $check('the number beside it moves', $later !== null, "$first, then $later");

    $enough = 10 * $seconds;
    $browser->until('window.demo.report().devices[0].received', fn ($count) => $count >= $enough, $seconds + 10);
    @mkdir(dirname($picture), recursive: true);
    $png = $browser->screenshot();
    file_put_contents($picture, $png);
    $check('a screenshot is saved', str_starts_with($png, "\x89PNG") && strlen($png) > 10_000, $picture);

    $status = $demo->stop();
    $check('the demo ends cleanly when it is told to', $status === 0, "exit status $status");
    $report = $browser->until('window.demo.report()', fn ($report) => $report['state'] === 'reconnecting', 5);
    $check('the page says that the hub has gone', $report !== null);

    $seen = $browser->evaluate('window.demo.report().messages');
    $again = new Demo($command, $demo->hubPort, $demo->pagePort);
    $report = $browser->until('window.demo.report()', fn ($report) => $report['state'] === 'live' && $report['messages'] > $seen, 15);
    $check('the page comes back when the hub does', $report !== null);

    $check('the page has no complaint', $browser->complaints === [], implode('; ', $browser->complaints));
    $again->stop();
} catch (Throwable $problem) {
    $check($problem->getMessage(), false);
} finally {
    isset($browser) && $browser->close();
    array_map(unlink(...), glob(sys_get_temp_dir() . '/demo-check-' . getmypid() . '.sock*'));
}

echo "$passed passed, $failed failed\n";
exit($failed ? 1 : 0);
