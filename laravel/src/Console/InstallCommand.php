<?php

declare(strict_types=1);

namespace Realtime\Laravel\Console;

use Illuminate\Console\Command;
use Illuminate\Support\Str;

/**
 * Turns an application over to the hub: configuration, environment, Echo, the development script.
 * What is there already stays; a second run changes nothing.
 */
class InstallCommand extends Command
{
    protected $signature = 'realtime:install
        {--front= : Echo for "plain", "react" or "vue"; by default what package.json says}
        {--no-echo : Leave JavaScript alone}';

    protected $description = 'Set up broadcasting through the realtime hub';

    public function handle(): int
    {
        $front = $this->option('front') ?: $this->detectFront();
        if (!in_array($front, ['plain', 'react', 'vue'], true)) {
            $this->error("--front is plain, react or vue, not $front.");

            return 1;
        }
        $this->call('vendor:publish', ['--tag' => 'realtime-config']);
        $this->writeEnvironment();
        $this->writeConnection();
        $this->writeDevelopmentScript();
        $this->option('no-echo') || $this->writeEcho($front);
        $this->line('');
        $this->line('Next: <info>npm install --save-dev laravel-echo pusher-js' . ($front === 'plain' ? '' : " @laravel/echo-$front") . '</info>, then <info>php artisan realtime:serve</info>.');

        $this->line('Who joins and leaves can be events of the application: <info>hooks</info> in config/realtime.php, and <info>php artisan realtime:listen</info>.');

        return 0;
    }

    private function writeEnvironment(): void
    {
        $path = $this->laravel->environmentFilePath();
        if (!is_file($path)) {
            $this->warn("There is no $path; set REALTIME_APP_ID, REALTIME_APP_KEY, REALTIME_APP_SECRET and BROADCAST_CONNECTION=realtime yourself.");

            return;
        }
        $text = file_get_contents($path);
        $has = fn (string $name) => preg_match("/^\s*$name=/m", $text) === 1;
        $lines = [];
        // An application that had Reverb or Pusher keeps their app, and config/realtime.php reads it.
        $prefix = current(array_filter(['REALTIME', 'REVERB', 'PUSHER'], fn ($prefix) => $has("{$prefix}_APP_KEY"))) ?: null;
        if ($prefix === null) {
            $prefix = 'REALTIME';
            $lines[] = 'REALTIME_APP_ID=' . random_int(100_000, 999_999);
            $lines[] = 'REALTIME_APP_KEY=' . Str::lower(Str::random(20));
            $lines[] = 'REALTIME_APP_SECRET=' . bin2hex(random_bytes(20));
        }
        // The hub takes Reverb's place, where browsers look for it already. Pusher's own address would be wrong.
        $address = $prefix === 'REVERB' && $has('REVERB_HOST') && $has('REVERB_PORT') && $has('REVERB_SCHEME')
            ? ['HOST' => '${REVERB_HOST}', 'PORT' => '${REVERB_PORT}', 'SCHEME' => '${REVERB_SCHEME}']
            : ['HOST' => 'localhost', 'PORT' => '8080', 'SCHEME' => 'http'];
        foreach (['KEY' => "\${{$prefix}_APP_KEY}"] + $address as $name => $value) {
            $variable = $name === 'KEY' ? 'VITE_REALTIME_APP_KEY' : "VITE_REALTIME_$name";
            $has($variable) || $lines[] = "$variable=\"$value\"";
        }
        // Laravel 11 renamed it; where neither stands, both names mean the same.
        $connection = $has('BROADCAST_DRIVER') && !$has('BROADCAST_CONNECTION') ? 'BROADCAST_DRIVER' : 'BROADCAST_CONNECTION';
        $text = $has($connection) ? preg_replace("/^(\s*$connection=).*$/m", '${1}realtime', $text) : rtrim($text) . "\n\n$connection=realtime\n";
        if ($lines !== []) {
            $text = rtrim($text) . "\n\n" . implode("\n", $lines) . "\n";
        }
        file_put_contents($path, $text);
        $this->line("  <info>.env</info> names the app and makes $connection=realtime");
    }

    private function writeConnection(): void
    {
        $path = $this->laravel->configPath('broadcasting.php');
        $text = is_file($path) ? file_get_contents($path) : '';
        if ($text === '' || preg_match("/['\"]realtime['\"]\s*=>/", $text)) {
            return;
        }
        $entry = "\n        'realtime' => [\n            'driver' => 'realtime',\n            // false: without a queue, right after the database commit\n            // 'queue' => false,\n        ],\n";
        $changed = preg_replace("/(['\"]connections['\"]\s*=>\s*\[\s*\n)/", '$1' . strtr($entry, ['$' => '\$']), $text, 1, $count);
        if ($count === 1) {
            file_put_contents($path, $changed);
            $this->line('  <info>config/broadcasting.php</info> has the connection "realtime"');
        }
    }

    private function writeDevelopmentScript(): void
    {
        $path = $this->laravel->basePath('composer.json');
        $composer = is_file($path) ? json_decode(file_get_contents($path), true) : null;
        $script = $composer['scripts']['dev'] ?? null;
        if ($script === null || str_contains(json_encode($script), 'realtime:')) {
            return;
        }
        $commands = (array) $script;
        foreach ($commands as &$command) {
            // The skeleton's line: concurrently "php artisan serve" "php artisan queue:listen …" … --names=server,queue,…
            if (str_contains($command, 'concurrently') && preg_match('/ --names=([\'"]?)([\w,]+)\1/', $command, $names)) {
                $command = str_replace($names[0], ' "php artisan realtime:serve"' . str_replace($names[2], "$names[2],realtime", $names[0]), $command);
                $composer['scripts']['dev'] = is_array($script) ? $commands : $command;
                file_put_contents($path, json_encode($composer, JSON_PRETTY_PRINT | JSON_UNESCAPED_SLASHES | JSON_UNESCAPED_UNICODE) . "\n");
                $this->line('  <info>composer run dev</info> starts the hub as well');

                return;
            }
        }
        $this->line('  add <info>php artisan realtime:serve</info> to what `composer run dev` starts');
    }

    private function writeEcho(string $front): void
    {
        $stub = file_get_contents(__DIR__ . "/../../stubs/echo-$front.js");
        $directory = $this->laravel->resourcePath('js');
        if ($front === 'plain') {
            $path = "$directory/echo.js";
            if (is_file($path) && !str_contains(file_get_contents($path), 'VITE_REALTIME')) {
                $this->warn("  resources/js/echo.js is yours; in it use:\n\n$stub");

                return;
            }
            is_dir($directory) || mkdir($directory, 0755, true);
            file_put_contents($path, $stub);
            $entry = is_file("$directory/bootstrap.js") ? "$directory/bootstrap.js" : "$directory/app.js";
            if (!is_file($entry) || !str_contains(file_get_contents($entry), "./echo'")) {
                file_put_contents($entry, "\nimport './echo';\n", FILE_APPEND);
            }
            $this->line('  <info>resources/js/echo.js</info> connects Echo');

            return;
        }
        $entry = current(array_filter(array_map(fn ($name) => "$directory/$name", ['app.tsx', 'app.jsx', 'app.ts', 'app.js']), 'is_file'));
        if ($entry === false) {
            $this->warn("  There is no resources/js/app.*; in your entry file use:\n\n$stub");

            return;
        }
        $text = file_get_contents($entry);
        if (!str_contains($text, 'configureEcho')) {
            file_put_contents($entry, $stub . "\n" . $text);
            $this->line('  <info>resources/js/' . basename($entry) . '</info> configures Echo');
        }
    }

    private function detectFront(): string
    {
        $path = $this->laravel->basePath('package.json');
        $package = is_file($path) ? (json_decode(file_get_contents($path), true) ?? []) : [];
        $packages = ($package['dependencies'] ?? []) + ($package['devDependencies'] ?? []);

        return isset($packages['react']) ? 'react' : (isset($packages['vue']) ? 'vue' : 'plain');
    }
}
