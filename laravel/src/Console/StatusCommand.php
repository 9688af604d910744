<?php

declare(strict_types=1);

namespace Realtime\Laravel\Console;

use Illuminate\Console\Command;
use Realtime\Exception\RealtimeException;

/** What the hub that this application publishes to says of itself. */
class StatusCommand extends Command
{
    protected $signature = 'realtime:status {--json : As JSON}';

    protected $description = 'Show the counters of the hub that this application reaches';

    public function handle(): int
    {
        try {
            $stats = \Realtime\stats();
        } catch (RealtimeException $e) {
            $this->error($e->getMessage());

            return 1;
        }
        if ($this->option('json')) {
            $this->line(json_encode($stats, JSON_THROW_ON_ERROR | JSON_UNESCAPED_SLASHES));

            return 0;
        }
        $rows = [];
        foreach ($stats as $name => $value) {
            $rows[] = [str_replace('_', ' ', $name), is_array($value) ? json_encode($value) : (string) $value];
        }
        $this->table(['counter', 'value'], $rows);

        return 0;
    }
}
