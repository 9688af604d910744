<?php

declare(strict_types=1);

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

    /** @param list<string> $flags for Chromium */
    public function __construct(string $program, array $flags = [])
    {
        $this->profile = sys_get_temp_dir() . '/demo-check-' . bin2hex(random_bytes(6));
        // The page is our own, so the sandbox, which needs rights that containers do not give, is left out.
        $this->chromium = new Child([
            $program, '--headless=new', '--no-sandbox', '--remote-debugging-pipe', "--user-data-dir=$this->profile",
            '--disable-gpu', '--disable-dev-shm-usage', '--disable-extensions', '--disable-background-networking',
            '--no-first-run', '--hide-scrollbars', '--force-color-profile=srgb', ...$flags, 'about:blank',
        ], [1 => ['file', '/dev/null', 'w'], 2 => ['file', '/dev/null', 'w'], 3 => ['pipe', 'r'], 4 => ['pipe', 'w']]);
    }

    /** Which Chromium there is: the one that `CHROMIUM` names, or one on the path. */
    public static function program(): string
    {
        $program = getenv('CHROMIUM') ?: '';
        foreach (['chromium', 'chromium-browser', 'google-chrome'] as $name) {
            $program = $program ?: trim((string) shell_exec('command -v ' . $name));
        }

        return $program ?: throw new RuntimeException('no Chromium: run `make setup`, or name one in CHROMIUM');
    }

    public function open(string $url, bool $dark = false): void
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
        $deadline = microtime(true) + 60;
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
