<?php

/** Laravel from where Debian puts it, the package as its composer.json says, and the application. */

declare(strict_types=1);

// Laravel 8 on PHP 8.2 has deprecations that are not ours to judge.
error_reporting(E_ALL & ~E_DEPRECATED);

require_once '/usr/share/php/Illuminate/autoload.php';
if (stream_resolve_include_path('GuzzleHttp/autoload.php')) {
    require_once 'GuzzleHttp/autoload.php';
}

(static function (): void {
    $package = getenv('REALTIME_PACKAGE');
    $composer = json_decode(file_get_contents("$package/composer.json"), true, 512, JSON_THROW_ON_ERROR);
    $places = ['App\\' => dirname(__DIR__) . '/app/'];
    foreach ($composer['autoload']['psr-4'] as $prefix => $path) {
        $places[$prefix] = "$package/$path";
    }
    // The longest prefix first, as in Composer's class loader.
    uksort($places, fn ($a, $b) => strlen($b) <=> strlen($a));
    spl_autoload_register(static function (string $class) use ($places): void {
        foreach ($places as $prefix => $path) {
            if (str_starts_with($class, $prefix) && is_file($file = $path . strtr(substr($class, strlen($prefix)), '\\', '/') . '.php')) {
                require $file;

                return;
            }
        }
    }, true, true);
    foreach ($composer['autoload']['files'] as $file) {
        require_once "$package/$file";
    }
})();
