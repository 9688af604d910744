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

/** A child process with some pipes, ended with its parent. */
final class Child
{
    /** @var resource */
    private $process;

    /** @var array<int, resource> */
    private array $pipes = [];

    private string $pending = '';
    private ?int $status = null;

    /**
     * @param list<string> $command
     * @param array<int, array<int, string>> $pipes as for proc_open()
     * @param array<string, string> $environment added to this process's own
     */
    public function __construct(array $command, array $pipes, array $environment = [])
    {
        $process = proc_open($command, $pipes, $this->pipes, null, $environment + getenv());
        $this->process = $process ?: throw new RuntimeException("cannot run $command[0]");
    }

    public function write(int $pipe, string $bytes): void
    {
        for ($written = 0; $written < strlen($bytes); $written += $count) {
            $count = fwrite($this->pipes[$pipe], substr($bytes, $written));
            if (!$count) {
                throw new RuntimeException('the program has gone');
            }
        }
    }

    /** The next text that ends with `$end`; null at the deadline (seconds as in `microtime(true)`) or when the program has gone. */
    public function read(int $pipe, string $end, float $deadline): ?string
    {
        while (($at = strpos($this->pending, $end)) === false) {
            $read = [$this->pipes[$pipe]];
            $none = null;
            $left = max(0, (int) (($deadline - microtime(true)) * 1e6));
            if (!$left || !stream_select($read, $none, $none, 0, $left)) {
                return null;
            }
            $bytes = fread($this->pipes[$pipe], 65_536);
            if ($bytes === '' || $bytes === false) {
                return null;
            }
            $this->pending .= $bytes;
        }
        $text = substr($this->pending, 0, $at);
        $this->pending = substr($this->pending, $at + strlen($end));

        return $text;
    }

    /** Asks the program to end, insists after `$patience` seconds; its exit status, or -1 if it had to be killed. */
    public function stop(float $patience = 10.0): int
    {
        if ($this->status !== null) {
            return $this->status;
        }
        proc_terminate($this->process, SIGTERM);
        $deadline = microtime(true) + $patience;
        while (($now = proc_get_status($this->process))['running'] && microtime(true) < $deadline) {
            usleep(10_000);
        }
        if ($now['running']) {
            proc_terminate($this->process, SIGKILL);
        }
        array_map(fclose(...), $this->pipes);
        proc_close($this->process);

        return $this->status = $now['running'] || $now['signaled'] ? -1 : $now['exitcode'];
    }

    public function __destruct()
    {
        $this->stop(2.0);
    }
}

/** One page in a headless Chromium. */
final class Browser
{
    /** What the page complained about. @var list<string> */
    public array $complaints = [];

    private Child $chromium;
    private string $profile;
    private ?string $session = null;
    private int $calls = 0;

    public function __construct(string $program)
    {
        $this->profile = sys_get_temp_dir() . '/demo-check-' . bin2hex(random_bytes(6));
        // The page is our own, so the sandbox, which needs rights that containers do not give, is left out.
        $this->chromium = new Child([
            $program, '--headless=new', '--no-sandbox', '--remote-debugging-pipe', "--user-data-dir=$this->profile",
            '--disable-gpu', '--disable-dev-shm-usage', '--disable-extensions', '--disable-background-networking',
            '--no-first-run', '--hide-scrollbars', '--force-color-profile=srgb', 'about:blank',
        ], [1 => ['file', '/dev/null', 'w'], 2 => ['file', '/dev/null', 'w'], 3 => ['pipe', 'r'], 4 => ['pipe', 'w']]);
    }

    public function open(string $url, bool $dark): void
    {
        $target = $this->call('Target.createTarget', ['url' => 'about:blank'])['targetId'];
        $this->session = $this->call('Target.attachToTarget', ['targetId' => $target, 'flatten' => true])['sessionId'];
        $this->call('Runtime.enable');
        $this->call('Emulation.setDeviceMetricsOverride', ['width' => 1280, 'height' => 900, 'deviceScaleFactor' => 1, 'mobile' => false]);
        $this->call('Emulation.setEmulatedMedia', ['features' => [['name' => 'prefers-color-scheme', 'value' => $dark ? 'dark' : 'light']]]);
        $answer = $this->call('Page.navigate', ['url' => $url]);
        if (isset($answer['errorText'])) {
            throw new RuntimeException("$url: $answer[errorText]");
        }
    }

    /** The value of a JavaScript expression in the page; null while the page cannot answer. */
    public function evaluate(string $expression): mixed
    {
        return $this->call('Runtime.evaluate', ['expression' => $expression, 'returnByValue' => true])['result']['value'] ?? null;
    }

    /** Asks until `$enough` likes the answer; the last answer, or null if the deadline passed before. */
    public function until(string $expression, callable $enough, float $seconds): mixed
    {
        $deadline = microtime(true) + $seconds;
        do {
            $answer = $this->evaluate($expression);
            if ($enough($answer)) {
                return $answer;
            }
            usleep(100_000);
        } while (microtime(true) < $deadline);

        return null;
    }

    public function screenshot(): string
    {
        $height = $this->evaluate("Math.ceil(document.querySelector('main').getBoundingClientRect().height)");
        $clip = ['x' => 0, 'y' => 0, 'width' => 1280, 'height' => $height, 'scale' => 1];

        return base64_decode($this->call('Page.captureScreenshot', ['format' => 'png', 'clip' => $clip, 'captureBeyondViewport' => true])['data']);
    }

    public function close(): void
    {
        $this->chromium->stop();
        exec('rm -rf ' . escapeshellarg($this->profile));
    }

    /** @return array<string, mixed> */
    private function call(string $method, array $parameters = []): array
    {
        $id = ++$this->calls;
        $command = ['id' => $id, 'method' => $method, 'params' => (object) $parameters];
        $this->chromium->write(3, json_encode($command + array_filter(['sessionId' => $this->session])) . "\0");
        $deadline = microtime(true) + 30;
        while (($text = $this->chromium->read(4, "\0", $deadline)) !== null) {
            $answer = json_decode($text, true, flags: JSON_THROW_ON_ERROR);
            if (($answer['id'] ?? null) === $id) {
                return $answer['result'] ?? throw new RuntimeException("$method: {$answer['error']['message']}");
            }
            $this->listen($answer);
        }
        throw new RuntimeException("Chromium did not answer $method");
    }

    private function listen(array $event): void
    {
        if ($event['method'] === 'Runtime.exceptionThrown') {
            $details = $event['params']['exceptionDetails'];
            $this->complaints[] = $details['exception']['description'] ?? $details['text'];
        } elseif ($event['method'] === 'Runtime.consoleAPICalled' && in_array($event['params']['type'], ['error', 'warning'], true)) {
            $this->complaints[] = implode(' ', array_map(fn ($a) => $a['value'] ?? '', $event['params']['args']));
        }
    }
}

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

$program = getenv('CHROMIUM') ?: '';
foreach (['chromium', 'chromium-browser', 'google-chrome'] as $name) {
    $program = $program ?: trim((string) shell_exec('command -v ' . $name));
}

/** Devices whose values have changed at least five times. */
$live = fn (?array $report): array => array_column(
    array_filter($report['devices'] ?? [], fn (array $device): bool => $device['received'] >= 5 && $device['changes'] >= 5),
    'channel',
);

try {
    $demo = new Demo($command);
    $browser = new Browser($program ?: throw new RuntimeException('no Chromium: run `make setup`, or name one in CHROMIUM'));
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
