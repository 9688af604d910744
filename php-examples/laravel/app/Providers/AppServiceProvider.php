<?php

declare(strict_types=1);

namespace App\Providers;

use App\Models\User;
use Illuminate\Database\Schema\Blueprint;
use Illuminate\Support\Facades\Broadcast;
use Illuminate\Support\Facades\Route;
use Illuminate\Support\Facades\Schema;
use Illuminate\Support\ServiceProvider;

class AppServiceProvider extends ServiceProvider
{
    public function boot(): void
    {
        $this->makeDatabase();
        Broadcast::routes();
        if (method_exists(Broadcast::getFacadeRoot(), 'userRoutes')) {
            Broadcast::userRoutes();
        }
        require base_path('routes/channels.php');
        Route::middleware('web')->group(base_path('routes/web.php'));
    }

    /** An example needs no migrations. */
    private function makeDatabase(): void
    {
        $path = storage_path('database.sqlite');
        if (is_file($path)) {
            return;
        }
        touch($path);
        Schema::create('users', function (Blueprint $table) {
            $table->id();
            $table->string('name');
            $table->string('remember_token')->nullable();
        });
        Schema::create('orders', function (Blueprint $table) {
            $table->id();
            $table->foreignId('user_id');
            $table->string('item');
            $table->string('state');
        });
        foreach (['Anna', 'Ben', 'Carla'] as $name) {
            User::create(['name' => $name]);
        }
    }
}
