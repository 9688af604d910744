<?php

/**
 * What the test files share: named tests, checks, deadlines, a WebSocket client, child processes.
 *
 * A test file is a plain PHP script that calls `test()`; it runs in a process of its own, started
 * by `tests/run` with the extension loaded and opcache on.
 */

declare(strict_types=1);

namespace Tests;

require __DIR__ . '/client.php';

/** How long anything may take before a test gives up on it. Nothing waits this long when all is well. */
const DEADLINE_S = 60.0;

/** A check did not hold. */
final class Failed extends \Exception {}

/** Runs one test; its name is a sentence. */
function test(string $name, callable $body): void
{
    // A forked child that runs on must not report tests in its parent's place.
    $process = getmypid();
    try {
        $body();
        $problem = null;
    } catch (\Throwable $e) {
        $problem = sprintf('%s: %s (%s:%d)', $e::class, $e->getMessage(), basename($e->getFile()), $e->getLine());
        foreach ($e->getTrace() as $frame) {
            $problem .= sprintf("\n      %s:%s %s", basename($frame['file'] ?? '-'), $frame['line'] ?? '-', $frame['function']);
        }
    }
    if (getmypid() !== $process) {
        exit(1);
    }
    fwrite(STDOUT, $problem === null ? "ok $name\n" : "not ok $name\n    $problem\n");
}

/** Fails unless the two are identical. */
function same(mixed $expected, mixed $actual, string $what = ''): void
{
    if ($expected !== $actual) {
        throw new Failed(trim($what . ' expected ' . shorten($expected) . ', got ' . shorten($actual)));
    }
}

/** Fails unless the condition holds. */
function check(bool $condition, string $what): void
{
    if (!$condition) {
        throw new Failed($what);
    }
}

/** Fails unless the text contains the part. */
function contains(string $part, string $text): void
{
    check(str_contains($text, $part), 'expected ' . shorten($part) . ' in ' . shorten($text));
}

/** Fails unless the body throws this class, with this in its message; returns what it threw. */
function throws(string $class, string $message, callable $body): \Throwable
{
    try {
        $body();
    } catch (\Throwable $e) {
        check($e instanceof $class, 'expected ' . $class . ', got ' . $e::class . ': ' . $e->getMessage());
        contains($message, $e->getMessage());
        return $e;
    }
    throw new Failed("expected $class, nothing was thrown");
}

/** Waits until the condition gives something true, and returns that. */
function eventually(callable $condition, string $what): mixed
{
    $deadline = microtime(true) + DEADLINE_S;
    while (!($result = $condition())) {
        if (microtime(true) > $deadline) {
            throw new Failed("gave up waiting until $what");
        }
        usleep(1000);
    }
    return $result;
}

function shorten(mixed $value): string
{
    $text = is_object($value) ? $value::class : var_export($value, true);
    return strlen($text) > 600 ? substr($text, 0, 600) . '…' : $text;
}

/** A hub on a free port, stopped when the body has ended: in this process, or where the runner wants it. */
function with_hub(callable $body, array $config = []): void
{
    $config = ['listen' => '127.0.0.1:0', 'shards' => 2, ...$config];
    $redis = is_remote() ? new RedisProcess() : null;
    $hub = match (getenv('TEST_MODE')) {
        'bus' => new HubProcess($config),
        // Where this process does not look for one.
        'remote' => new HubProcess([...$config, 'socket' => socket_path()]),
        default => \Realtime\start($config),
    };
    if ($redis) {
        eventually(fn () => attempt(fn () => \Realtime\publish('warm up', 1)), 'the hub has said what it goes by');
    }
    try {
        $body($hub);
    } finally {
        $hub->stop(2000);
    }
}

/** Whether calls of this process go straight to Redis, through which hubs are not asked for everything. */
function is_remote(): bool
{
    return getenv('TEST_MODE') === 'remote';
}

/** What the call gives, or null where it fails with what may pass. */
function attempt(callable $call): mixed
{
    try {
        return $call();
    } catch (\Realtime\Exception\RealtimeException $e) {
        check($e->isRetryable(), $e->getMessage());
        return null;
    }
}

/** A bus socket's path that nobody else has. */
function socket_path(): string
{
    return getenv('TEST_DIRECTORY') . '/' . bin2hex(random_bytes(4)) . '.sock';
}

/** Threads of this process. */
function threads(): int
{
    return count(scandir('/proc/self/task')) - 2;
}

/** Open descriptors of this process, by number. */
function descriptors(): array
{
    $open = [];
    foreach (scandir('/proc/self/fd') as $fd) {
        $target = $fd === '.' || $fd === '..' ? false : @readlink("/proc/self/fd/$fd");
        if ($target !== false) {
            $open[(int) $fd] = $target;
        }
    }
    return $open;
}

/** A port on which nobody listens now, and which the system gives to nobody who asks for any. */
function free_port(): int
{
    [$lowest, $highest] = array_map('intval', preg_split('~\s+~', trim(file_get_contents('/proc/sys/net/ipv4/ip_local_port_range'))));
    return eventually(function () use ($lowest, $highest) {
        $port = random_int(10_000, 65_535);
        $given = $port >= $lowest && $port <= $highest;
        return !$given && @stream_socket_server("tcp://127.0.0.1:$port") ? $port : null;
    }, "a port outside $lowest-$highest is free");
}

/** Processes that have this text on their command line, or are named so by php-fpm ("master process (…/fpm.conf)"). */
function processes(string $text): array
{
    $found = [];
    foreach (glob('/proc/[0-9]*') as $process) {
        if (str_contains(str_replace("\0", ' ', (string) @file_get_contents("$process/cmdline")), $text)) {
            $found[] = (int) basename($process);
        }
    }
    return $found;
}

/** The processes that this one has started and that have not gone. */
function children(int $parent): array
{
    $found = [];
    foreach (glob('/proc/[0-9]*/stat') as $file) {
        $text = (string) @file_get_contents($file);
        if ((int) (explode(' ', substr((string) strrchr($text, ')'), 2))[1] ?? 0) === $parent) {
            $found[] = (int) $text;
        }
    }
    return $found;
}

/** Whether a process has not ended; one that has, and whose parent has not noticed yet, does not live. */
function lives(int $pid): bool
{
    return preg_match('/\) [^ZX] /', (string) @file_get_contents("/proc/$pid/stat")) === 1;
}

/** Says what a test has seen. */
function note(string $text): void
{
    fwrite(STDOUT, "    $text\n");
}

/** The options with which this test's own PHP was started: extension, opcache and the rest. */
function php_options(): array
{
    return json_decode((string) getenv('TEST_PHP_OPTIONS'), true, flags: JSON_THROW_ON_ERROR);
}

/** PHP code in a process of its own, with the extension and further options; its hub has a bus of its own. */
function php(string $code, array $options = [], array $environment = []): Process
{
    $environment += ['REALTIME_SOCKET' => socket_path()];
    if (is_remote()) {
        $environment += ['REALTIME_MODE' => 'auto', 'REALTIME_BROKER__URL' => ''];
    }
    return new Process([PHP_BINARY, ...php_options(), ...$options, '-r', "require '" . __DIR__ . "/harness.php'; use function Tests\\{check, same, throws}; " . $code], $environment);
}

/** A Redis on a Unix socket, gone with this object. */
final class RedisProcess
{
    public readonly string $url;
    private readonly string $socket;
    private readonly string $directory;
    private array $options;
    private ?Process $process = null;

    public function __construct(array $options = ['--save', '', '--appendonly', 'no'])
    {
        $this->directory = getenv('TEST_DIRECTORY');
        $this->socket = "$this->directory/redis.sock";
        $this->url = "unix://$this->socket";
        $this->options = $options;
        $this->start();
    }

    public function start(): void
    {
        $this->process = new Process(['redis-server', '--port', '0', '--unixsocket', $this->socket, '--dir', $this->directory, ...$this->options]);
        eventually(fn () => trim($this->command('PING')) === '+PONG', 'redis-server is ready: ' . $this->process->written());
    }

    public function pid(): int
    {
        return $this->process->pid();
    }

    public function kill(): void
    {
        $this->process->signal(SIGKILL);
        $this->process->wait();
    }

    public function signal(int $signal): void
    {
        $this->process->signal($signal);
    }

    /** The first bytes of the answer to a command, as the wire has them. */
    public function command(string ...$words): string
    {
        return self::ask($this->url, ...$words);
    }

    /** The same of the server at an address. */
    public static function ask(string $url, string ...$words): string
    {
        $stream = @stream_socket_client($url, timeout: DEADLINE_S);
        if (!$stream) {
            return '';
        }
        stream_set_timeout($stream, (int) DEADLINE_S);
        fwrite($stream, '*' . count($words) . "\r\n" . implode('', array_map(fn ($word) => '$' . strlen($word) . "\r\n$word\r\n", $words)));
        return (string) fread($stream, 65536);
    }
}

/** A Redis Cluster of two masters, each with half of the slots, gone with this object. */
final class RedisClusterProcess
{
    public readonly string $url;
    /** @var list<string> */
    private array $addresses = [];
    /** @var list<Process> */
    private array $processes = [];

    public function __construct()
    {
        $buses = [];
        foreach ([0, 1] as $at) {
            $directory = getenv('TEST_DIRECTORY') . "/node$at";
            mkdir($directory);
            [$port, $buses[]] = [free_port(), free_port()];
            $address = $this->addresses[] = "tcp://127.0.0.1:$port";
            $this->processes[] = $process = new Process([
                'redis-server', '--port', (string) $port, '--bind', '127.0.0.1', '--dir', $directory, '--save', '', '--cluster-enabled', 'yes',
                '--cluster-port', (string) $buses[$at], '--cluster-node-timeout', '120000',
            ]);
            eventually(fn () => trim(RedisProcess::ask($address, 'PING')) === '+PONG', 'redis-server is ready: ' . $process->written());
            same("+OK\r\n", $this->command($at, 'CLUSTER', 'SET-CONFIG-EPOCH', (string) ($at + 1)));
            same("+OK\r\n", $this->command($at, 'CLUSTER', 'ADDSLOTSRANGE', ...[['0', '8191'], ['8192', '16383']][$at]));
        }
        $this->command(1, 'CLUSTER', 'MEET', '127.0.0.1', (string) parse_url($this->addresses[0], PHP_URL_PORT), (string) $buses[0]);
        foreach ([0, 1] as $at) {
            eventually(fn () => str_contains($this->command($at, 'CLUSTER', 'INFO'), 'cluster_slots_assigned:16384'), 'both know all slots');
            eventually(fn () => str_contains($this->command($at, 'CLUSTER', 'INFO'), 'cluster_state:ok'), 'the cluster is there');
        }
        $this->url = 'redis+cluster://' . substr($this->addresses[0], strlen('tcp://'));
    }

    /** The first bytes of a node's answer to a command, as the wire has them. */
    public function command(int $at, string ...$words): string
    {
        return RedisProcess::ask($this->addresses[$at], ...$words);
    }

    /** Gives the slot of a key, and what is in it, to another node; where it is already it stays. */
    public function move(string $key, int $from, int $to): void
    {
        $slot = trim($this->command($from, 'CLUSTER', 'KEYSLOT', $key), ":\r\n");
        $ids = array_map(fn ($at) => explode("\r\n", $this->command($at, 'CLUSTER', 'MYID'))[1], [0, 1]);
        $this->command($to, 'CLUSTER', 'SETSLOT', $slot, 'IMPORTING', $ids[$from]);
        $this->command($from, 'CLUSTER', 'SETSLOT', $slot, 'MIGRATING', $ids[$to]);
        $script = "return table.concat(redis.call('CLUSTER', 'GETKEYSINSLOT', ARGV[1], 100), ' ')";
        $port = (string) parse_url($this->addresses[$to], PHP_URL_PORT);
        while ($keys = array_filter(explode(' ', explode("\r\n", $this->command($from, 'EVAL', $script, '0', $slot))[1]))) {
            foreach ($keys as $key) {
                $this->command($from, 'MIGRATE', '127.0.0.1', $port, $key, '0', '10000');
            }
        }
        $this->command($to, 'CLUSTER', 'SETSLOT', $slot, 'NODE', $ids[$to]);
        $this->command($from, 'CLUSTER', 'SETSLOT', $slot, 'NODE', $ids[$to]);
    }
}

/** A hub in another process, for what a test does with the hub itself. */
final class HubProcess
{
    public readonly string $url;
    public readonly string $socket;
    private Process $process;

    public function __construct(array $config = [], array $environment = [])
    {
        $this->socket = $config['socket'] ?? getenv('REALTIME_SOCKET');
        $config += ['listen' => '127.0.0.1:0', 'shards' => 2, 'socket' => $this->socket];
        $environment = is_remote() ? ['REALTIME_MODE' => 'embedded', ...$environment] : $environment;
        $this->process = new Process([PHP_BINARY, ...php_options(), __DIR__ . '/hub.php', json_encode($config, JSON_THROW_ON_ERROR)], $environment);
        $this->url = $this->process->expect('~^ready (\S+)$~m')[1];
    }

    public function pid(): int
    {
        return $this->process->pid();
    }

    public function signal(int $signal): void
    {
        $this->process->signal($signal);
    }

    /** Makes it stand still; returns once every thread of it does. */
    public function freeze(): void
    {
        $this->signal(SIGSTOP);
        eventually(function () {
            foreach (glob("/proc/{$this->pid()}/task/*/stat") as $thread) {
                if (!str_contains((string) @file_get_contents($thread), ') T ')) {
                    return false;
                }
            }
            return true;
        }, 'the hub stood still');
    }

    /** Waits for the end after a signal; the exit status. */
    public function wait(): int
    {
        return $this->process->wait();
    }

    /** Everything that it said. */
    public function said(): string
    {
        return $this->process->errors();
    }

    /** `Realtime\Hub::setUser()`, which belongs to the process that has the hub. */
    public function setUser(string $socketId, string|int|null $userId, mixed $info = null): bool
    {
        static $calls = 0;
        $calls++;
        $this->process->write(json_encode([$calls, $socketId, $userId, $info], JSON_THROW_ON_ERROR) . "\n");
        [, $answer, $message] = eventually(
            fn () => preg_match("~^answer $calls (\S+) ?(.*)\n~m", $this->process->written(), $match) ? $match : null,
            'the hub answered',
        );
        return match ($answer) {
            'true' => true,
            'false' => false,
            default => throw new $answer($message),
        };
    }

    public function stop(?int $timeoutMs = null): bool
    {
        if ($this->process->running()) {
            $this->process->signal(SIGTERM);
        }
        return $this->process->wait() === 0;
    }
}

/** A child process with its output. */
final class Process
{
    /** @var resource */
    private $process;
    /** @var array<int, resource> */
    private array $pipes = [];
    private ?int $status = null;
    private array $output = [1 => '', 2 => ''];

    public function __construct(array $command, array $environment = [], ?string $directory = null)
    {
        $this->process = proc_open($command, [['pipe', 'r'], ['pipe', 'w'], ['pipe', 'w']], $this->pipes, $directory, $environment + getenv());
        foreach ($this->pipes as $pipe) {
            stream_set_blocking($pipe, false);
        }
    }

    public function __destruct()
    {
        if ($this->running()) {
            proc_terminate($this->process, SIGKILL);
            $this->wait();
        }
    }

    public function pid(): int
    {
        return proc_get_status($this->process)['pid'];
    }

    public function signal(int $signal): void
    {
        proc_terminate($this->process, $signal);
    }

    public function write(string $text): void
    {
        fwrite($this->pipes[0], $text);
    }

    public function running(): bool
    {
        if ($this->status === null) {
            $status = proc_get_status($this->process);
            if (!$status['running']) {
                $this->status = $status['signaled'] ? 128 + $status['termsig'] : $status['exitcode'];
            }
        }
        return $this->status === null;
    }

    /** Waits for the end; 128 + signal when one ended it. */
    public function wait(): int
    {
        eventually(function () {
            $this->read();
            return !$this->running();
        }, 'the process ended; it wrote: ' . implode('', $this->output));
        $this->read();
        return $this->status;
    }

    /** Standard output, once the process has ended well. */
    public function output(): string
    {
        $status = $this->wait();
        check($status === 0, "the process ended with $status: " . implode('', $this->output));
        return $this->output[1];
    }

    /** What was written to standard error so far. */
    public function errors(): string
    {
        $this->read();
        return $this->output[2];
    }

    /** What was written to standard output so far. */
    public function written(): string
    {
        $this->read();
        return $this->output[1];
    }

    /** Waits until standard output or error has the pattern, and returns the match. */
    public function expect(string $pattern): array
    {
        return eventually(function () use ($pattern) {
            $ended = !$this->running();
            $this->read();
            $found = preg_match($pattern, $this->output[1] . $this->output[2], $match) === 1;
            check($found || !$ended, "the process ended without $pattern: " . implode('', $this->output));
            return $found ? $match : null;
        }, "the process wrote $pattern");
    }

    private function read(): void
    {
        foreach ([1, 2] as $number) {
            while (($part = fread($this->pipes[$number], 65536)) !== false && $part !== '') {
                $this->output[$number] .= $part;
            }
        }
    }
}
