<?php

declare(strict_types=1);

/**
 * This machine as a set of "devices", read from /proc.
 *
 * A device has a channel, a few words for people, and one or two series of numbers. Counters that the kernel only
 * ever adds to (CPU time, bytes) become rates over the last half second: over a single step of 100 ms, one tick of
 * the kernel's clock is 10 % of a core, which would draw as a saw.
 */
final class Machine
{
    /** Seconds over which a counter is turned into a rate. */
    private const RATE_WINDOW = 0.5;

    /** Seconds between two looks at all processes; only the busiest are read on every poll. */
    private const PROCESS_SCAN = 1.0;

    private const PROCESSES = 6;
    private const INTERFACES = 4;

    /** @var array<string, list<array{float, array<string, float>}>> recent counters by channel, oldest first */
    private array $samples = [];

    /** @var array<string, array<string, mixed>> what a page needs to know of a device, by channel */
    private array $catalogue = [];

    /** @var array<int, array{ticks: float, average: float}> every process, as of the last scan */
    private array $processes = [];

    /** @var list<int> pids of the busiest processes */
    private array $busiest = [];

    private float $scannedAt = 0.0;

    /** Ticks of the kernel's accounting clock in a second. */
    private float $hertz;

    public function __construct()
    {
        // 100 on every Linux that Debian builds for; `getconf` knows about the others.
        $this->hertz = (float) (@shell_exec('getconf CLK_TCK 2>/dev/null') ?: 100);
    }

    /**
     * Every device as it is now.
     *
     * @return array<string, array<string, float>> series by channel; a device without a rate yet is left out
     */
    public function poll(): array
    {
        $now = hrtime(true) / 1e9;
        $this->catalogue = [];
        $readings = array_filter([
            ...$this->processors($now),
            ...$this->memory(),
            ...$this->load(),
            ...$this->interfaces($now),
            ...$this->processes($now),
        ]);
        $this->samples = array_intersect_key($this->samples, $this->catalogue);

        return $readings;
    }

    /**
     * What each device of the last poll is: channel, kind, label, unit, names of its series.
     *
     * @return list<array<string, mixed>>
     */
    public function catalogue(): array
    {
        return array_values($this->catalogue);
    }

    /**
     * All cores together, then each: the share of time spent in programs and in the kernel.
     *
     * @return array<string, array<string, float>>
     */
    private function processors(float $now): array
    {
        $lines = array_filter(self::lines('/proc/stat'), fn (string $line): bool => str_starts_with($line, 'cpu'));
        $cores = max(1, count($lines) - 1);
        $readings = [];
        foreach ($lines as $line) {
            $fields = preg_split('/\s+/', $line);
            $name = array_shift($fields);
            // user, nice, system, idle, iowait, irq, softirq, steal; what follows is counted in user and nice already.
            $ticks = array_map(floatval(...), array_slice($fields, 0, 8));
            $rates = $this->rates("device.$name", $now, [
                'user' => $ticks[0] + $ticks[1],
                'system' => $ticks[2] + array_sum(array_slice($ticks, 5)),
                'all' => array_sum($ticks),
            ]);
            // A core that the kernel put to sleep for good counts no ticks at all.
            $readings["device.$name"] = ($rates['all'] ?? 0.0) > 0 ? [
                'user' => round(100 * $rates['user'] / $rates['all'], 1),
                'system' => round(100 * $rates['system'] / $rates['all'], 1),
            ] : [];
            $this->describe("device.$name", $name === 'cpu' ? 'machine' : 'core', $name === 'cpu'
                ? "All $cores cores" : 'Core ' . substr($name, 3), 'percent', ['user' => 'programs', 'system' => 'kernel']);
        }

        return $readings;
    }

    /** @return array<string, array<string, float>> */
    private function memory(): array
    {
        $bytes = [];
        foreach (self::lines('/proc/meminfo') as $line) {
            if (preg_match('/^(\w+):\s+(\d+) kB/', $line, $match)) {
                $bytes[$match[1]] = 1024.0 * (int) $match[2];
            }
        }
        $total = $bytes['MemTotal'] ?? 0.0;
        $this->describe('device.memory', 'memory', 'Memory in use', 'bytes', ['used' => 'used'], ['total' => $total]);

        return ['device.memory' => ['used' => $total - ($bytes['MemAvailable'] ?? $bytes['MemFree'] ?? 0.0)]];
    }

    /** @return array<string, array<string, float>> */
    private function load(): array
    {
        // "0.20 0.18 0.12 2/345 11206": averages of 1, 5 and 15 minutes, runnable/all tasks, newest pid.
        $fields = preg_split('#[\s/]+#', self::lines('/proc/loadavg')[0] ?? '') + array_fill(0, 5, '0');
        $this->describe('device.load', 'load', 'Load', 'tasks', ['load' => '1 min average', 'running' => 'running now']);

        // The task that reads the file is always running; it is not news.
        return ['device.load' => ['load' => (float) $fields[0], 'running' => max(0.0, (float) $fields[3] - 1)]];
    }

    /**
     * Bytes per second through the interfaces that have carried most.
     *
     * @return array<string, array<string, float>>
     */
    private function interfaces(float $now): array
    {
        $counters = [];
        foreach (array_slice(self::lines('/proc/net/dev'), 2) as $line) {
            [$name, $rest] = explode(':', $line, 2);
            $fields = preg_split('/\s+/', trim($rest));
            $counters[trim($name)] = ['in' => (float) $fields[0], 'out' => (float) $fields[8]];
        }
        $counters = array_filter($counters, fn (array $bytes): bool => array_sum($bytes) > 0);
        uasort($counters, fn (array $a, array $b): int => array_sum($b) <=> array_sum($a));
        $counters = array_slice($counters, 0, self::INTERFACES);
        ksort($counters);
        $readings = [];
        foreach ($counters as $name => $bytes) {
            $channel = 'device.net.' . $name;
            $readings[$channel] = array_map(round(...), $this->rates($channel, $now, $bytes));
            $this->describe($channel, 'network', "Network $name", 'bytes/s', ['in' => 'received', 'out' => 'sent']);
        }

        return $readings;
    }

    /**
     * CPU time of the busiest processes, in percent of one core.
     *
     * @return array<string, array<string, float>>
     */
    private function processes(float $now): array
    {
        if ($now - $this->scannedAt >= self::PROCESS_SCAN) {
            $this->scan($now - $this->scannedAt);
            $this->scannedAt = $now;
        }
        $readings = [];
        foreach ($this->busiest as $pid) {
            $process = self::process($pid);
            if ($process === null) {
                continue;
            }
            $channel = "device.process.$pid";
            $rates = $this->rates($channel, $now, ['cpu' => $process['ticks']]);
            $readings[$channel] = array_map(fn (float $ticks): float => round(100 * $ticks / $this->hertz, 1), $rates);
            $this->describe($channel, 'process', $process['name'], 'percent', ['cpu' => 'of one core'], ['pid' => $pid]);
        }

        return $readings;
    }

    /** Looks at every process and keeps the busiest; an average over some seconds keeps them from swapping places. */
    private function scan(float $seconds): void
    {
        $seen = [];
        foreach (scandir('/proc') ?: [] as $entry) {
            $process = ctype_digit($entry) ? self::process((int) $entry) : null;
            if ($process === null) {
                continue;
            }
            $pid = (int) $entry;
            $before = $this->processes[$pid] ?? null;
            $rate = $before ? ($process['ticks'] - $before['ticks']) / $seconds : 0.0;
            $seen[$pid] = ['ticks' => $process['ticks'], 'average' => 0.6 * ($before['average'] ?? 0.0) + 0.4 * $rate];
        }
        $this->processes = $seen;
        uasort($seen, fn (array $a, array $b): int => [$b['average'], $b['ticks']] <=> [$a['average'], $a['ticks']]);
        $this->busiest = array_slice(array_keys($seen), 0, self::PROCESSES);
        // In an order that does not change with each scan: the page ranks them.
        sort($this->busiest);
    }

    /** @return array{name: string, ticks: float}|null null once the process has ended */
    private static function process(int $pid): ?array
    {
        $stat = @file_get_contents("/proc/$pid/stat");
        // The name stands in parentheses and may itself hold spaces and parentheses.
        if ($stat === false || !preg_match('/^\d+ \((.*)\) (.*)$/s', $stat, $match)) {
            return null;
        }
        $fields = explode(' ', $match[2]);

        return ['name' => $match[1], 'ticks' => (float) $fields[11] + (float) $fields[12]];
    }

    /**
     * Counters as units per second since half a second ago.
     *
     * @param array<string, float> $counters
     * @return array<string, float> empty on the first sample
     */
    private function rates(string $channel, float $now, array $counters): array
    {
        $samples = &$this->samples[$channel];
        $samples[] = [$now, $counters];
        while (count($samples) > 2 && $samples[1][0] <= $now - self::RATE_WINDOW) {
            array_shift($samples);
        }
        [$then, $before] = $samples[0];
        if ($then === $now) {
            return [];
        }
        $rates = [];
        foreach ($counters as $name => $count) {
            $rates[$name] = max(0.0, ($count - $before[$name]) / ($now - $then));
        }

        return $rates;
    }

    /**
     * @param array<string, string> $series name for people by name in the readings
     * @param array<string, int|float> $more
     */
    private function describe(string $channel, string $kind, string $label, string $unit, array $series, array $more = []): void
    {
        $this->catalogue[$channel] = compact('channel', 'kind', 'label', 'unit', 'series') + $more;
    }

    /** @return list<string> */
    private static function lines(string $path): array
    {
        return @file($path, FILE_IGNORE_NEW_LINES | FILE_SKIP_EMPTY_LINES) ?: [];
    }
}
